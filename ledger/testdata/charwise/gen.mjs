// Writes vectors.json: index keys as the JavaScript package charwise 3.0.1 encodes and sorts them.
//
//   (cd ../../../interop && npm ci) && node gen.mjs > vectors.json
//
// Each entry is {key, text, back}: the key, its encoding, and what charwise decodes that to where it is not the key.
// Entries stand in the order JavaScript gives the encodings. Numbers that JSON lacks are {"n": "NaN"} and so on.
import { createRequire } from "node:module";
const charwise = createRequire(new URL("../../../interop/package.json", import.meta.url))("charwise");

let seed = 20240817;
const rnd = (n) => {
  seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
  return (seed >>> 8) % n;
};
const chars = ["a", "b", "z", "A", "?", "!", '"', "@", "%", " ", "~", "K", "J", "\u0000", "\u0001", "\u007f", "é", "ß", "\u07ff", "ࠀ", "\ud7ff", "\ue000", "\uffee", "\ufffd", "😀", "\u{10000}", "\u{10ffff}"];
const text = () => Array.from({ length: rnd(6) }, () => chars[rnd(chars.length)]).join("");
const view = new DataView(new ArrayBuffer(8));
const number = () => {
  switch (rnd(5)) {
    case 0: return rnd(2000) - 1000;
    case 1: return (rnd(2000) - 1000) / 8;
    case 2: return (rnd(2) ? 1 : -1) * (rnd(1 << 24) / 1e6) * 10 ** (rnd(40) - 20);
    case 3: return (rnd(1 << 24) * 2 ** 24 + rnd(1 << 24)) * (rnd(2) ? 1 : -1);
    default:
      for (let i = 0; i < 8; i++) view.setUint8(i, rnd(256));
      return view.getFloat64(0);
  }
};
const key = (depth) => {
  switch (rnd(depth > 0 ? 8 : 6)) {
    case 0: return [null, true, false][rnd(3)];
    case 1: case 2: return number();
    case 3: case 4: case 5: return text();
    default: return Array.from({ length: rnd(4) }, () => key(depth - 1));
  }
};
const keys = [
  null, true, false, 0, -0, 1, -1, 0.1, -0.1, 0.2, 1 / 3, -1 / 3, 5e-324, -5e-324, 2.2250738585072014e-308, Number.MAX_VALUE, -Number.MAX_VALUE,
  2 ** 53 - 1, 2 ** 53, -(2 ** 53), 1e21, 1e-7, 123456789012345680000, 10, 100, 9.999, 99.99, NaN, Infinity, -Infinity,
  "", "a", "aa", "b", "\u0000", "\u0001", "\u0001\u0000", "quo\"te!?\u0001x", "😀", "\uffee",
  [], [[]], [[], []], [[[]]], ["a"], ["a", "b"], ["a", []], [[], "a"], [null], [["a"], "b"], [1, [2, [3, []]]], ["a!b"], ["a??b"], ["a?b"], ["?@"], ["!"], ["\""], ["!?@"],
  [NaN], [Infinity], [-1.5, "x"], ["n", "str", 1],
];
while (keys.length < 900) keys.push(key(3));

const json = (k) => {
  if (Array.isArray(k)) return k.map(json);
  if (typeof k === "number" && !Number.isFinite(k)) return { n: String(k) };
  return k;
};
const same = (a, b) => JSON.stringify(json(a)) === JSON.stringify(json(b));
const seen = new Set();
const rows = [];
for (const k of keys) {
  const id = JSON.stringify(json(k));
  if (seen.has(id)) continue;
  seen.add(id);
  const enc = charwise.encode(k);
  const row = { key: json(k), text: enc };
  const back = charwise.decode(enc);
  if (!same(back, k)) row.back = json(back);
  rows.push(row);
}
rows.sort((a, b) => (a.text < b.text ? -1 : a.text > b.text ? 1 : 0));
console.log("[\n" + rows.map((r) => JSON.stringify(r)).join(",\n") + "\n]");
