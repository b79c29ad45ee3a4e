// ---- The tree of prefixes, kept up to date key by key. Showing it costs the rows that are open, not the whole store.
// Deeper parts of a key are one name: a key may have a thousand parts.
const FOLDERS_DEEP_MAX = 12;
const newFolder = path => ({ path, folders: new Map(), keys: new Set(), count: 0, clashes: 0, sorted: null });
let tree = newFolder("");
const opened = new Set();

// The folders that a key stands in: of "a/b/c" these are "a/" and "a/b/".
function pathsOf(key) {
  const paths = [];
  let at = key.indexOf("/");
  while (at >= 0 && at < key.length - 1 && paths.length < FOLDERS_DEEP_MAX) {
    paths.push(key.slice(0, at + 1));
    at = key.indexOf("/", at + 1);
  }
  return paths;
}
function plant(row, old) {
  const added = old ? 0 : 1, clashes = !!row.c - !!old?.c;
  let folder = tree;
  folder.count += added; folder.clashes += clashes;
  for (const path of pathsOf(row.k)) {
    let next = folder.folders.get(path);
    if (!next) { next = newFolder(path); folder.folders.set(path, next); folder.sorted = null; }
    folder = next;
    folder.count += added; folder.clashes += clashes;
  }
  if (added) { folder.keys.add(row.k); folder.sorted = null; }
}
function uproot(row) {
  const way = [tree];
  for (const path of pathsOf(row.k)) way.push(way[way.length - 1].folders.get(path));
  const home = way[way.length - 1];
  home.keys.delete(row.k);
  home.sorted = null;
  for (const folder of way) { folder.count--; folder.clashes -= !!row.c; }
  for (let at = way.length - 1; at > 0 && !way[at].count; at--) { way[at - 1].folders.delete(way[at].path); way[at - 1].sorted = null; }
}
const inOrder = (a, b) => a < b ? -1 : a > b ? 1 : 0;
function childrenOf(folder) {
  folder.sorted ||= { folders: [...folder.folders.values()].sort((a, b) => inOrder(a.path, b.path)), keys: [...folder.keys].sort(inOrder) };
  return folder.sorted;
}
// A folder that holds one folder and nothing else is one row with it.
function innermost(folder) {
  while (folder.folders.size === 1 && !folder.keys.size) folder = folder.folders.values().next().value;
  return folder;
}
// The rows that are shown: folders first, then keys, each with the part of its name behind its folder.
function openRows(folder, depth, rows) {
  const { folders, keys } = childrenOf(folder);
  for (const child of folders) {
    const inner = innermost(child), isOpen = opened.has(inner.path);
    rows.push({ folder: inner, depth, label: inner.path.slice(folder.path.length), isOpen });
    if (isOpen) openRows(inner, depth + 1, rows);
  }
  for (const k of keys) rows.push({ k, depth, label: k.slice(folder.path.length) });
  return rows;
}
// Opens the folders above a key.
function reveal(key) { for (const path of pathsOf(key)) opened.add(path); stale = true; }
function toggle(path) {
  if (!opened.delete(path)) opened.add(path);
  stale = true;
  later(showKeys);
}

