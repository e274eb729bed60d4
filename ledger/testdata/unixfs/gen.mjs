// Writes vectors.json: files as @ipld/unixfs 3.0.0 encodes them, which Fireproof 0.19 used for what it attached.
//
//   npm install @ipld/unixfs@3.0.0 && node gen.mjs > vectors.json
//
// Fireproof cuts at 1 MiB and puts 1024 links into a node; here both are small, so that trees are deep.
import * as UnixFS from "@ipld/unixfs";
import * as raw from "multiformats/codecs/raw";
import { withMaxChunkSize } from "@ipld/unixfs/file/chunker/fixed";
import { withWidth } from "@ipld/unixfs/file/layout/balanced";

const settings = (leaf) => UnixFS.configure({ fileChunkEncoder: leaf, smallFileEncoder: leaf, chunker: withMaxChunkSize(16), fileLayout: withWidth(3) });
const out = [];
for (const [name, leaf] of [["raw leaves", raw], ["leaves inside nodes", undefined]]) {
  for (const size of [0, 16, 17, 48, 49, 400]) {
    const content = new Uint8Array(size).map((_, i) => (i * 7 + (i >> 3)) & 255);
    const { readable, writable } = new TransformStream({}, UnixFS.withCapacity());
    const writer = UnixFS.createWriter({ writable, settings: leaf ? settings(leaf) : UnixFS.configure({ chunker: withMaxChunkSize(16), fileLayout: withWidth(3) }) });
    const blocks = [];
    const reading = (async () => { for await (const b of readable) blocks.push({ cid: b.cid.toString(), data: Buffer.from(b.bytes).toString("base64") }); })();
    const file = UnixFS.createFileWriter(writer);
    await file.write(content);
    const link = await file.close();
    await writer.close();
    await reading;
    out.push({ name: `${size} bytes, ${name}`, root: link.cid.toString(), content: Buffer.from(content).toString("base64"), blocks });
  }
}
console.log("[\n" + out.map((v) => JSON.stringify(v)).join(",\n") + "\n]");
