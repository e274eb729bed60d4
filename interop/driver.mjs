// driver.mjs runs unmodified @fireproof/core for the interop tests and benchmarks.
//
// It reads one JSON command a line from standard input and answers each with one JSON line:
//
//   {"id":1,"op":"open","db":"a","name":"notes","base":"/dir/store","keybag":"/dir/keybag"}
//   {"id":1,"ok":{…}}   or   {"id":1,"error":"…"}
//
// `db` is the caller's handle, so that one process can hold many databases, several of one name in
// different directories. Without `base` a database lives in memory. Lines that are no answer are the library's log.
import readline from "node:readline";
import { pathToFileURL } from "node:url";
import { fireproof } from "@fireproof/core";
import * as pail from "@web3-storage/pail/crdt";

const dbs = new Map();
let memory = 0;

// plain turns what the library returns into JSON: bytes and links in the DAG-JSON forms.
function plain(v) {
  if (v === null || typeof v !== "object") return v;
  if (v instanceof Uint8Array) return { "/": { bytes: Buffer.from(v).toString("base64").replace(/=+$/, "") } };
  if (v.asCID && v.code !== undefined) return { "/": v.toString() };
  if (Array.isArray(v)) return v.map(plain);
  const out = {};
  for (const [k, x] of Object.entries(v)) {
    if (typeof x === "function" || x === undefined) continue;
    out[k] = plain(x);
  }
  return out;
}

// real turns the DAG-JSON form of bytes back into a Uint8Array.
function real(v) {
  if (v === null || typeof v !== "object") return v;
  if (Array.isArray(v)) return v.map(real);
  const inner = v["/"];
  if (inner && typeof inner === "object" && typeof inner.bytes === "string") return new Uint8Array(Buffer.from(inner.bytes, "base64"));
  const out = {};
  for (const [k, x] of Object.entries(v)) out[k] = real(x);
  return out;
}

const cids = (l) => l.map((c) => c.toString());
const crdt = (db) => db.ledger.crdt;
const loader = (db) => crdt(db).blockstore.loader;
const sleep = (ms) => new Promise((r) => setTimeout(r, ms));

async function settle(db) {
  await loader(db).commitQueue.waitIdle();
  await sleep(5);
  await loader(db).commitQueue.waitIdle();
}

function limit(p, ms, what) {
  let t;
  const late = new Promise((_, no) => { t = setTimeout(() => no(new Error(`${what}: no answer in ${ms} ms`)), ms); });
  return Promise.race([p, late]).finally(() => clearTimeout(t));
}

// holder finds the store that has the CARs of a group: what a database merged stays in the store it came from.
async function holder(cars, first) {
  for (const db of [dbs.get(first), ...dbs.values()]) {
    const store = loader(db).attachedStores.local();
    try {
      for (const c of cars) await store.active.car.load(c);
      return store;
    } catch { /* not there */ }
  }
  throw new Error(`no open database has ${cids(cars)}`);
}

const ops = {
  async open({ db, name, base, keybag }) {
    const opts = base
      ? { storeUrls: { base: pathToFileURL(base).href }, keyBag: { url: pathToFileURL(keybag).href } }
      : { storeUrls: { base: `memory://m${++memory}` }, keyBag: { url: `memory://k${memory}` } };
    const d = fireproof(name, opts);
    dbs.set(db, d);
    await d.ready();
    await settle(d);
    return ops.state({ db });
  },
  async put({ db, doc }) { const r = await dbs.get(db).put(real(doc)); return { ids: [r.id], head: cids(r.clock) }; },
  async bulk({ db, docs }) { const r = await dbs.get(db).bulk(docs.map(real)); return { ids: r.ids, head: cids(r.clock) }; },
  async del({ db, key }) { const r = await dbs.get(db).del(key); return { ids: [r.id], head: cids(r.clock) }; },
  async get({ db, key }) {
    try { return { doc: plain(await dbs.get(db).get(key)) }; } catch (e) { return { missing: true, message: e.message }; }
  },
  // parallel puts at once: the library forks its own clock.
  async parallel({ db, docs }) { await Promise.all(docs.map((d) => dbs.get(db).put(real(d)))); return ops.state({ db }); },
  async head({ db }) { return { head: cids(crdt(dbs.get(db)).clock.head) }; },
  async state({ db, docs = false, changes = false }) {
    const d = dbs.get(db);
    const head = crdt(d).clock.head;
    const out = { head: cids(head), carLog: loader(d).carLog.asArray().map(cids) };
    if (docs) {
      out.root = head.length ? (await pail.root(crdt(d).blockstore, head)).root.toString() : "";
      out.docs = (await d.allDocs({ includeDeleted: true })).rows.map((r) => ({ key: r.key, value: plain(r.value) }));
      out.live = (await d.allDocs()).rows.length;
    }
    if (changes) out.changes = (await d.changes([])).rows.map((r) => ({ key: r.key, value: plain(r.value), clock: r.clock.toString() }));
    return out;
  },
  async query({ db, field, opts }) {
    const r = await dbs.get(db).query(field, { includeDocs: false, ...real(opts ?? {}) });
    return { rows: r.rows.map((x) => ({ key: plain(x.key), id: x.id, value: plain(x.value) })) };
  },
  async file({ db, key, name, text, type }) {
    const d = dbs.get(db);
    let doc = { _id: key };
    try { doc = await d.get(key); } catch { /* a new document */ }
    doc._files = { ...(doc._files ?? {}), [name]: new File([Buffer.from(text, "base64")], name, { type }) };
    const r = await d.put(doc);
    await settle(d);
    return { ids: [r.id], head: cids(r.clock) };
  },
  async readFile({ db, key, name }) {
    const doc = await dbs.get(db).get(key);
    const f = await doc._files[name].file();
    return { type: f.type, text: Buffer.from(await f.arrayBuffer()).toString("base64") };
  },
  // merge takes the commits of another open database the way metas of a remote arrive, oldest first.
  async merge({ db, from }) {
    const a = dbs.get(db), b = dbs.get(from);
    await settle(b);
    for (const cars of loader(b).carLog.asArray().toReversed())
      await loader(a).handleDbMetasFromStore([{ cars }], await holder(cars, from));
    return ops.head({ db });
  },
  async compact({ db }) { await dbs.get(db).compact(); await settle(dbs.get(db)); return ops.state({ db }); },
  async close({ db }) { const d = dbs.get(db); await settle(d); dbs.delete(db); await d.close(); return {}; },
  async memory() { return { rss: process.memoryUsage().rss }; },
};

const rl = readline.createInterface({ input: process.stdin, crlfDelay: Infinity });
const out = (o) => process.stdout.write(JSON.stringify(o) + "\n");
console.log = console.info = console.warn = console.error = () => {};
// One command after another: the tests own the order.
let chain = Promise.resolve();
rl.on("line", (line) => {
  chain = chain.then(async () => {
    const c = JSON.parse(line);
    const t0 = performance.now();
    try {
      const ok = await limit(ops[c.op](c), c.timeout ?? 60000, c.op);
      out({ id: c.id, ok, ms: performance.now() - t0 });
    } catch (e) {
      out({ id: c.id, error: String(e?.message ?? e) });
    }
  });
});
rl.on("close", () => chain.then(() => process.exit(0)));
process.on("unhandledRejection", () => {});
