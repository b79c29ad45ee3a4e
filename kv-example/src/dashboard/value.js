// ---- Values: bytes, and the text that stands for them in a field. Nothing is changed unseen on the way there and back.
const HEX_BYTES_MAX = 65536, PRETTY_CHARS_MAX = 262144, PRETTY_DEPTH_MAX = 64;
const fromBase64 = text => Uint8Array.from(atob(text), char => char.charCodeAt(0));
const bytesOf = entry => entry.value != null ? new TextEncoder().encode(entry.value) : fromBase64(entry.value_base64);

function toHex(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length; at++) text += bytes[at].toString(16).padStart(2, "0") + (at % 16 === 15 ? "\n" : " ");
  return text.trimEnd();
}
// The bytes, or null if the text is no hexadecimal.
function fromHex(text) {
  const digits = text.replace(/\s+/g, "");
  if (digits.length % 2 || /[^0-9a-f]/i.test(digits)) return null;
  return Uint8Array.from(digits.match(/../g) || [], pair => parseInt(pair, 16));
}

// What is wrong with a text as JSON, or "".
function jsonError(text) {
  try { JSON.parse(text); return ""; } catch (error) { return error.message; }
}
// JSON is laid out by its tokens and not by reading and writing it: numbers, doubled fields and escapes stay as they are.
const JSON_TOKENS = /"[^"\\]*(?:\\.[^"\\]*)*"|[{}[\],:]|[^\s{}[\],:"]+/g;
const compactJson = json => json.match(JSON_TOKENS).join("");
function depthOf(tokens) {
  let depth = 0, most = 0;
  for (const token of tokens) {
    if (token === "{" || token === "[") most = Math.max(most, ++depth);
    else if (token === "}" || token === "]") depth--;
  }
  return most;
}
function prettyJson(json) {
  if (json.length > PRETTY_CHARS_MAX) return json;
  const tokens = json.match(JSON_TOKENS);
  if (depthOf(tokens) > PRETTY_DEPTH_MAX) return json;
  const parts = [];
  let depth = 0;
  const line = () => "\n" + "  ".repeat(depth);
  const opens = token => token === "{" || token === "[", closes = token => token === "}" || token === "]";
  tokens.forEach((token, at) => {
    if (opens(token)) { depth++; parts.push(token, closes(tokens[at + 1]) ? "" : line()); }
    else if (closes(token)) { depth--; parts.push(opens(tokens[at - 1]) ? "" : line(), token); }
    else parts.push(token, token === "," ? line() : token === ":" ? " " : "");
  });
  return parts.join("");
}

// The text of bytes that are UTF-8, or null.
function textOf(bytes) {
  try { return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes); } catch { return null; }
}
// Whether a text field gives a text back as it was. It makes all line ends alike.
function fitsField(text) {
  const ends = new Set(text?.match(/\r\n|\r|\n/g));
  return text !== null && !ends.has("\r") && ends.size < 2;
}
// The kind that fits a value. What a text field would change is edited as bytes.
function kindOf(bytes) {
  const text = textOf(bytes);
  return !fitsField(text) ? "hex" : jsonError(text) ? "text" : "json";
}
// How a value is shown and edited:
// kind: json, text or hex. text: what stands in the field. isCompact: it is JSON on one line, laid out for reading, and
// written back on one line. ends: its line ends. isWhole: the text stands for the whole value.
function shownAs(bytes, kind) {
  const field = { kind, isCompact: false, ends: "\n", isWhole: true };
  if (kind === "hex") return { ...field, isWhole: bytes.length <= HEX_BYTES_MAX, text: toHex(bytes.subarray(0, HEX_BYTES_MAX)) };
  const stored = textOf(bytes), text = stored.replaceAll("\r\n", "\n");
  if (stored !== text) field.ends = "\r\n";
  field.isCompact = kind === "json" && !text.includes("\n") && !jsonError(text);
  return { ...field, text: field.isCompact ? prettyJson(text) : text };
}
// What is written for a field's text, or null if it stands for no value.
function bodyOf({ kind, text, isCompact, ends }) {
  if (kind === "hex") return fromHex(text);
  if (kind === "json" && isCompact && !jsonError(text)) return compactJson(text);
  return ends === "\n" ? text : text.replaceAll("\n", ends);
}
// A value for reading, where it is not edited.
function readable(entry) {
  if (!entry) return "";
  if (entry.value == null) return toHex(bytesOf(entry).subarray(0, 1024)) + (entry.bytes > 1024 ? "\n…" : "");
  return jsonError(entry.value) ? entry.value : prettyJson(entry.value);
}

