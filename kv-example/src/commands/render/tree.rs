//! A directory of files of which one state takes the place of another in one step, as Kubernetes does it.
//!
//! ```text
//! DIR/..tidings-18f2a3c4d5e6   the files of one state
//! DIR/..data                   a link to it; to replace this link is the one step
//! DIR/name                     a link to ..data/name
//! DIR/..command_due            there while the command has not succeeded for what is in force
//! ```
//!
//! A reader of several files that belong together resolves `..data` once and reads below the directory it leads to. The
//! state before is removed as soon as it is replaced, as Kubernetes does, so that a secret that was replaced does not
//! stay on the disk. A reader that is in it then finds no file and reads again; it never finds that of another state.
//! The same may happen to a reader of a link while it is being followed.
//!
//! A state that cannot be written whole is removed at once. What a process leaves that was killed on its way is a
//! directory that nothing links to: it is removed before the next write, which may need its space. Nothing here follows
//! a link: files are made in a directory that is new.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::due::Due;
use crate::exit::{Exit, Failure};

/// The link that is replaced, its next state, and how the directories of states begin.
const DATA: &str = "..data";
const DATA_NEXT: &str = "..data_next";
const STATE: &str = "..tidings-";
/// Held while a process writes here.
const LOCK: &str = "..lock";
const COMMAND_DUE: &str = "..command_due";

pub(super) struct Tree {
    dir: PathBuf,
    mode: u32,
    pub(super) due: Due,
    _lock: File,
}

impl Tree {
    pub(super) fn open(dir: &Path, mode: u32) -> Result<Self, Failure> {
        let failed = |error| Failure::file(dir, &error);
        fs::create_dir_all(dir).map_err(failed)?;
        // Links and the command mean the same wherever somebody reads them from.
        let dir = fs::canonicalize(dir).map_err(failed)?;
        let lock_path = dir.join(LOCK);
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&lock_path);
        let lock = lock.map_err(|error| Failure::file(&lock_path, &error))?;
        lock.try_lock().map_err(|_| {
            let error = format!("{} is rendered by another process; nothing was written", dir.display());
            Failure::new(Exit::Failed, error)
        })?;
        Ok(Self { dir, mode, due: Due::default(), _lock: lock })
    }

    /// Remembers in the directory that a command is to be run.
    pub(super) fn with_command(mut self) -> Self {
        self.due = Due::at(self.dir.join(COMMAND_DUE));
        self
    }

    /// Makes the files the state of the directory. Returns whether a byte of it has changed.
    pub(super) fn write(&self, files: &BTreeMap<&str, &[u8]>) -> Result<bool, Failure> {
        let tops: BTreeSet<&str> = files.keys().map(|path| path.split('/').next().unwrap_or(path)).collect();
        let in_force = self.in_force()?;
        self.check_names(&tops)?;
        let failed = |error: io::Error| Failure::file(&self.dir, &error);
        let is_changed = match &in_force {
            Some(state) => !self.is_same(state, files),
            None => true,
        };
        self.remove_states(in_force.as_deref()).map_err(failed)?;
        if is_changed {
            self.due.note().and_then(|()| self.replace(files)).map_err(failed)?;
            self.remove_states(self.in_force()?.as_deref()).map_err(failed)?;
        }
        self.link(&tops).and_then(|()| self.unlink(&tops)).map_err(failed)?;
        Ok(is_changed)
    }

    /// The directory of the state in force.
    fn in_force(&self) -> Result<Option<PathBuf>, Failure> {
        let data = self.dir.join(DATA);
        let error = match fs::read_link(&data) {
            Ok(target) if is_state(&target) => return Ok(Some(self.dir.join(target))),
            Ok(_) => "it links to something that this program has not made".to_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => error.to_string(),
        };
        Err(Failure::new(Exit::Failed, format!("{}: {error}; nothing was written", data.display())))
    }

    /// Whether all names at the top are free, or are links of this program.
    fn check_names(&self, tops: &BTreeSet<&str>) -> Result<(), Failure> {
        let is_taken = |top: &&&str| {
            let path = self.dir.join(top);
            fs::symlink_metadata(&path).is_ok() && !is_own_link(&path)
        };
        let Some(taken) = tops.iter().find(is_taken) else { return Ok(()) };
        let path = self.dir.join(taken);
        let error = format!("{} was not made by this program; nothing was written", path.display());
        Err(Failure::new(Exit::Failed, error).hint("move it away, or render to another directory"))
    }

    fn is_same(&self, state: &Path, files: &BTreeMap<&str, &[u8]>) -> bool {
        let is_file = |(path, value): (&&str, &&[u8])| {
            let path = state.join(path);
            let is_mode =
                fs::metadata(&path).is_ok_and(|file| file.permissions().mode() & 0o777 == self.mode);
            is_mode && is_content(&path, value).unwrap_or(false)
        };
        count(state).is_ok_and(|count| count == files.len()) && files.iter().all(is_file)
    }

    /// Writes a new state beside the one in force, and puts it in its place.
    fn replace(&self, files: &BTreeMap<&str, &[u8]>) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = format!("{STATE}{:x}", now.as_nanos());
        let state = self.dir.join(&name);
        let placed = self.fill(&state, files).and_then(|()| self.put_in_force(&name));
        if placed.is_err() {
            _ = fs::remove_dir_all(&state);
        }
        placed.and_then(|()| File::open(&self.dir)?.sync_all())
    }

    fn fill(&self, state: &Path, files: &BTreeMap<&str, &[u8]>) -> io::Result<()> {
        self.make_directory(state)?;
        for (path, value) in files {
            let path = state.join(path);
            let parents = path.ancestors().skip(1).take_while(|parent| *parent != state);
            let missing: Vec<&Path> = parents.take_while(|parent| !parent.exists()).collect();
            missing.iter().rev().try_for_each(|parent| self.make_directory(parent))?;
            let mut file = OpenOptions::new().write(true).create_new(true).mode(self.mode).open(&path)?;
            file.write_all(value)?;
            file.set_permissions(Permissions::from_mode(self.mode))?;
            file.sync_all()?;
        }
        File::open(state)?.sync_all()
    }

    fn put_in_force(&self, name: &str) -> io::Result<()> {
        let next = self.dir.join(DATA_NEXT);
        _ = fs::remove_file(&next);
        symlink(name, &next)?;
        fs::rename(&next, self.dir.join(DATA))
    }

    /// Those who may read the files may enter the directory.
    fn make_directory(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)?;
        let mode = 0o700 | self.mode | ((self.mode & 0o444) >> 2);
        fs::set_permissions(path, Permissions::from_mode(mode))
    }

    fn link(&self, tops: &BTreeSet<&str>) -> io::Result<()> {
        for top in tops {
            let path = self.dir.join(top);
            if !is_own_link(&path) {
                symlink(Path::new(DATA).join(top), &path)?;
            }
        }
        Ok(())
    }

    /// Removes links to what there is no more.
    fn unlink(&self, tops: &BTreeSet<&str>) -> io::Result<()> {
        let name = |path: &PathBuf| path.file_name().and_then(OsStr::to_str).map(str::to_owned);
        let is_wanted = |path: &PathBuf| name(path).is_some_and(|name| tops.contains(&*name));
        let gone = |path: &PathBuf| !is_wanted(path) && is_own_link(path);
        self.paths()?.into_iter().filter(gone).try_for_each(fs::remove_file)
    }

    /// Removes states that are not in force, and the link to one that did not come into force.
    fn remove_states(&self, in_force: Option<&Path>) -> io::Result<()> {
        for path in self.paths()? {
            let Some(name) = path.file_name() else { continue };
            if is_state(Path::new(name)) && Some(&*path) != in_force {
                fs::remove_dir_all(&path)?;
            } else if *name == *DATA_NEXT {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    fn paths(&self) -> io::Result<Vec<PathBuf>> {
        fs::read_dir(&self.dir)?.map(|entry| Ok(entry?.path())).collect()
    }
}

/// Whether this program has made a link at the top.
fn is_own_link(path: &Path) -> bool {
    let name = path.file_name().map(Path::new);
    fs::read_link(path).is_ok_and(|target| name.is_some_and(|name| target == Path::new(DATA).join(name)))
}

fn is_state(path: &Path) -> bool {
    let digits = path.to_str().and_then(|name| name.strip_prefix(STATE));
    digits.is_some_and(|digits| !digits.is_empty() && digits.chars().all(|c| c.is_ascii_hexdigit()))
}

/// The number of files in a directory and those below it.
fn count(dir: &Path) -> io::Result<usize> {
    let mut files = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        files += if entry.file_type()?.is_dir() { count(&entry.path())? } else { 1 };
    }
    Ok(files)
}

pub(super) fn is_content(path: &Path, value: &[u8]) -> io::Result<bool> {
    let file = File::open(path)?;
    if file.metadata()?.len() != value.len() as u64 {
        return Ok(false);
    }
    let mut content = Vec::with_capacity(value.len());
    file.take(1 + value.len() as u64).read_to_end(&mut content)?;
    Ok(content == value)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixStream;
    use std::process::{Child, Command};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use tidings_proptest::Folder;
    use tidings_proptest::processes::eventually;

    use super::*;

    const SWAPS: usize = 10_000;
    /// Ends a reader whose writer has failed.
    const READS_MAX: usize = 10_000_000;
    /// The files of a state. Each holds the number of the state, `COPIES` times.
    const FILES: [&str; 4] = ["a", "b", "tls/cert", "tls/key"];
    const COPIES: usize = 500;

    fn content(state: usize) -> Vec<u8> {
        format!("{state}\n").repeat(COPIES).into_bytes()
    }

    /// What readers have seen.
    #[derive(Debug, Default)]
    struct Seen {
        /// Reads that found all of one state.
        whole: usize,
        /// Reads that found two states.
        mixed: usize,
        /// Reads that did not find a file.
        gone: usize,
        /// The states of whole reads, without repetition.
        states: usize,
        last: usize,
    }

    impl Seen {
        /// Takes the contents of files that were read together.
        fn take(&mut self, read: io::Result<Vec<String>>) {
            let Ok(contents) = read else {
                self.gone += 1;
                return;
            };
            let lines: Vec<&str> = contents.iter().flat_map(|content| content.lines()).collect();
            let is_whole =
                lines.len() == contents.len() * COPIES && lines.iter().all(|line| *line == lines[0]);
            if !is_whole {
                self.mixed += 1;
                return;
            }
            let state = lines[0].parse().unwrap();
            assert!(state >= self.last, "a reader went back from {} to {state}", self.last);
            self.whole += 1;
            self.states += usize::from(state != self.last);
            self.last = state;
        }
    }

    /// Reads again and again, until the writer is done.
    fn read_on(is_over: &AtomicBool, read: impl Fn() -> io::Result<Vec<String>>) -> Seen {
        let mut seen = Seen::default();
        for _ in (0..READS_MAX).take_while(|_| !is_over.load(Ordering::Relaxed)) {
            seen.take(read());
        }
        seen
    }

    fn read_all(dir: &Path) -> io::Result<Vec<String>> {
        FILES.iter().map(|file| fs::read_to_string(dir.join(file))).collect()
    }

    /// A directory in memory if there is one: each swap waits for the disk several times.
    fn folder() -> Folder {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() { Folder::below(memory) } else { Folder::new() }
    }

    fn swap(tree: &Tree, state: usize) {
        let content = content(state);
        let files: BTreeMap<&str, &[u8]> = FILES.iter().map(|file| (*file, &content[..])).collect();
        assert!(tree.write(&files).unwrap());
    }

    #[test]
    fn readers_see_no_mixture_in_10_000_swaps() {
        let folder = folder();
        let tree = Tree::open(&folder.0, 0o644).unwrap();
        swap(&tree, 1);
        let (is_over, dir) = (AtomicBool::new(false), &folder.0);
        let in_force = || read_all(&dir.join(fs::read_link(dir.join(DATA))?));
        let linked = || Ok(vec![fs::read_to_string(dir.join("tls/key"))?]);
        let (together, alone) = thread::scope(|scope| {
            let together = scope.spawn(|| read_on(&is_over, in_force));
            let alone = scope.spawn(|| read_on(&is_over, linked));
            (2..=SWAPS + 1).for_each(|state| swap(&tree, state));
            is_over.store(true, Ordering::Relaxed);
            (together.join().unwrap(), alone.join().unwrap())
        });
        println!("all files of ..data: {together:?}\none file by its link: {alone:?}");
        for seen in [together, alone] {
            assert_eq!(seen.mixed, 0, "{seen:?}");
            assert!(seen.whole > 100 && seen.states > 100, "few reads: {seen:?}");
        }
        assert_eq!(fs::read(dir.join("a")).unwrap(), content(SWAPS + 1));
    }

    /// An nginx that serves a directory. Its own files are beside it.
    struct Nginx {
        process: Child,
        socket: PathBuf,
    }

    impl Nginx {
        /// `None`: the program is missing.
        fn start(own: &Path, dir: &Path) -> Option<Self> {
            // As `.ci/run` has it: in `tmp` beside the folder of the build that this test belongs to.
            let test = std::env::current_exe().unwrap();
            let kept = test.ancestors().nth(3).unwrap().join("tmp/nginx/usr/sbin/nginx");
            let program = if kept.exists() { kept } else { "nginx".into() };
            let (own, dir) = (own.display(), dir.display());
            let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
            let temporary: String = temporary.map(|name| format!("{name}_temp_path {own}/{name};")).concat();
            let config = format!(
                "daemon off; master_process off; pid {own}/pid; error_log stderr crit; events {{}}
                 http {{ {temporary} access_log off; keepalive_requests 100000000; server {{
                    listen unix:{own}/socket;
                    location /links/ {{ alias {dir}/; }}
                    location = /now {{ root {dir}/..data; return 200 $realpath_root; }}
                    location /states/ {{ alias {dir}/; }}
                 }} }}"
            );
            fs::write(format!("{own}/conf"), config).unwrap();
            let mut command = Command::new(program);
            command.args(["-p", &own.to_string(), "-c", &format!("{own}/conf"), "-e", "stderr"]);
            let process = match command.spawn() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    assert!(std::env::var_os("CI").is_none(), "nginx is missing");
                    println!("SKIPPED: nginx is missing");
                    return None;
                }
                started => started.unwrap(),
            };
            let nginx = Self { process, socket: format!("{own}/socket").into() };
            eventually("it serves", || UnixStream::connect(&nginx.socket).is_ok());
            Some(nginx)
        }

        fn client(&self) -> NginxClient {
            NginxClient(RefCell::new(BufReader::new(UnixStream::connect(&self.socket).unwrap())))
        }
    }

    impl Drop for Nginx {
        fn drop(&mut self) {
            _ = self.process.kill();
            _ = self.process.wait();
        }
    }

    /// A connection that asks for one file after the other.
    struct NginxClient(RefCell<BufReader<UnixStream>>);

    impl NginxClient {
        fn get(&self, path: &str) -> io::Result<String> {
            let mut stream = self.0.borrow_mut();
            write!(stream.get_mut(), "GET {path} HTTP/1.1\r\nhost: nginx\r\n\r\n").unwrap();
            let mut head: Vec<String> = Vec::new();
            while head.last().is_none_or(|line| line != "\r\n") {
                let mut line = String::new();
                assert!(stream.read_line(&mut line).unwrap() > 0, "nginx goes on: {head:?}");
                head.push(line);
            }
            let length =
                head.iter().find_map(|line| line.strip_prefix("Content-Length: ")?.trim().parse().ok());
            let mut body = vec![0; length.expect("it says so")];
            stream.read_exact(&mut body).unwrap();
            match head[0].split(' ').nth(1) {
                Some("200") => Ok(String::from_utf8(body).unwrap()),
                // 500: what the link led to was removed while nginx followed it.
                Some("404" | "500") => Err(io::ErrorKind::NotFound.into()),
                other => panic!("{other:?}"),
            }
        }

        /// All files below a path.
        fn all(&self, below: &str) -> io::Result<Vec<String>> {
            FILES.iter().map(|file| self.get(&format!("{below}/{file}"))).collect()
        }
    }

    #[test]
    fn nginx_serves_no_mixture_in_10_000_swaps() {
        let (own, folder) = (folder(), folder());
        let Some(nginx) = Nginx::start(&own.0, &folder.0) else { return };
        let (tree, is_over) = (Tree::open(&folder.0, 0o644).unwrap(), AtomicBool::new(false));
        swap(&tree, 1);
        let [together, alone, mixed] = thread::scope(|scope| {
            let clients = [nginx.client(), nginx.client(), nginx.client()];
            let [together, alone, mixed] = clients.map(|client| (client, &is_over));
            let readers = [
                // The client asks once which state is in force, and reads all files of that one.
                scope.spawn(move || {
                    read_on(together.1, || {
                        let state = together.0.get("/now")?;
                        together.0.all(&format!("/states/{}", state.rsplit('/').next().unwrap()))
                    })
                }),
                scope.spawn(move || read_on(alone.1, || Ok(vec![alone.0.get("/links/tls/key")?]))),
                // The control: each file by its own link.
                scope.spawn(move || read_on(mixed.1, || mixed.0.all("/links"))),
            ];
            (2..=SWAPS + 1).for_each(|state| swap(&tree, state));
            is_over.store(true, Ordering::Relaxed);
            readers.map(|reader| reader.join().unwrap())
        });
        println!(
            "all files of one state: {together:?}\none file: {alone:?}\nfiles by their links: {mixed:?}"
        );
        for seen in [together, alone] {
            assert_eq!(seen.mixed, 0, "{seen:?}");
            assert!(seen.whole > 100 && seen.states > 100, "few reads: {seen:?}");
        }
        assert!(mixed.mixed > 0, "{mixed:?}");
    }

    #[test]
    fn state_that_cannot_be_written_leaves_nothing() {
        let folder = folder();
        let tree = Tree::open(&folder.0, 0o644).unwrap();
        assert!(tree.write(&[("a", &b"1"[..])].into()).unwrap());
        let names = || {
            let names = tree.paths().unwrap().into_iter();
            names.map(|path| path.file_name().unwrap().to_owned()).collect::<BTreeSet<_>>()
        };
        let before = names();
        // The second file has a name that no system takes.
        let long = "n".repeat(256);
        for _ in 0..3 {
            assert!(tree.write(&[("a", &b"2"[..]), (&long, &b"2"[..])].into()).is_err());
            assert_eq!(names(), before);
        }
        assert_eq!(fs::read(folder.at("a")).unwrap(), b"1");
        // What a killed process left is gone before the next state is written.
        fs::create_dir(folder.at("..tidings-1")).unwrap();
        assert!(tree.write(&[("a", &b"2"[..]), (&long, &b"2"[..])].into()).is_err());
        assert_eq!(names(), before);
    }

    #[test]
    fn command_is_due_from_before_a_change_to_its_success() {
        let folder = folder();
        let tree = Tree::open(&folder.0, 0o644).unwrap().with_command();
        let write = |value: &[u8], name: &str| tree.write(&[("a", value), (name, value)].into());
        assert!(write(b"1", "b").unwrap() && tree.due.is_noted());
        // Of a process before this one.
        assert!(!write(b"1", "b").unwrap() && tree.due.is_noted());
        tree.due.clear().unwrap();
        assert!(!write(b"1", "b").unwrap() && !tree.due.is_noted());
        // An error on the way may be one behind the change.
        write(b"2", &"n".repeat(256)).unwrap_err();
        assert!(tree.due.is_noted());
    }

    #[test]
    fn files_replaced_one_by_one_are_read_mixed() {
        let (folder, is_over) = (folder(), AtomicBool::new(false));
        fs::create_dir(folder.at("tls")).unwrap();
        // Each file by itself is replaced in one step.
        let replace = |state| {
            for file in FILES {
                fs::write(folder.at("next"), content(state)).unwrap();
                fs::rename(folder.at("next"), folder.at(file)).unwrap();
            }
        };
        replace(1);
        let seen = thread::scope(|scope| {
            let seen = scope.spawn(|| read_on(&is_over, || read_all(&folder.0)));
            (2..=SWAPS + 1).for_each(replace);
            is_over.store(true, Ordering::Relaxed);
            seen.join().unwrap()
        });
        assert!(seen.mixed > 0, "{seen:?}");
    }
}
