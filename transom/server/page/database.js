// Where conversations are kept: this browser's own database, one for all tabs.
//
// Three tables by id: `whole` conversations, their `heads` for the list, and their `words` to search. What one tab
// saves the others hear of. A conversation that another tab has changed since is never written over: what this tab
// has becomes a conversation of its own. Without a database all of it lasts until the tab is closed.

import { apart, fresh, fromList, merge, titled } from "./conversation.js";
import * as store from "./store.js";

const TABLES = ["whole", "heads", "words"];
const channel = "BroadcastChannel" in globalThis ? new BroadcastChannel("transom") : null;
const inMemory = Object.fromEntries(TABLES.map((name) => [name, new Map()]));
let connection = null;
let words = null; // the table `words`, read when somebody searches

const done = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

/** Open the database; false where this browser has none for this page. */
export async function open() {
  try {
    const request = indexedDB.open("transom", 1);
    request.onupgradeneeded = () => TABLES.forEach((name) => request.result.createObjectStore(name, { keyPath: "id" }));
    connection = await done(request);
  } catch {
    return false;
  }
  await takeOver();
  return true;
}

/** Work on tables as one step: all of it is kept or none. `work` gets a function from a name to a table. */
async function within(mode, work) {
  if (!connection) return work((name) => memoryTable(inMemory[name]));
  const transaction = connection.transaction(TABLES, mode);
  const over = new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onabort = () => reject(transaction.error ?? new Error("the database ended the step"));
  });
  over.catch(() => {}); // said by the work, or below
  const result = await work((name) => {
    const table = transaction.objectStore(name);
    return {
      get: (id) => done(table.get(id)), all: () => done(table.getAll()),
      put: (value) => done(table.put(value)), delete: (id) => done(table.delete(id)),
    };
  });
  await over;
  return result;
}

const memoryTable = (map) => ({
  get: async (id) => structuredClone(map.get(id)), all: async () => structuredClone([...map.values()]),
  put: async (value) => void map.set(value.id, structuredClone(value)), delete: async (id) => void map.delete(id),
});

/** Heads of all conversations, { id, title, updated, revision }, the newest first. */
export async function heads() {
  const all = await within("readonly", (table) => table("heads").all());
  return all.sort((a, b) => b.updated - a.updated);
}

export const load = async (id) => (await within("readonly", (table) => table("whole").get(id))) ?? null;

export const everything = () => within("readonly", (table) => table("whole").all());

/**
 * Keep a conversation. Where another tab has said something else in the same place since it was loaded, it is kept
 * beside that one, under a new id and a name that says so, and the result is true. `writing`: whether it is being
 * answered, for other tabs to show. Throws where there is no room.
 */
export async function save(conversation, writing = false) {
  let parted = false;
  const saved = { ...conversation, updated: Date.now(), title: titled(conversation) };
  await within("readwrite", async (table) => {
    const kept = await table("heads").get(saved.id);
    const behind = kept !== undefined && kept.revision !== conversation.revision;
    const theirs = behind && (await table("whole").get(saved.id));
    parted = behind && !merge(saved, theirs);
    if (behind) saved.revision = kept.revision;
    if (parted) Object.assign(saved, { id: fresh().id, title: apart(saved, theirs), named: true });
    saved.revision += 1;
    await put(table, saved);
  });
  const { id, title, named, updated, revision } = saved;
  if (parted) tell(conversation.id); // nobody writes there any more
  Object.assign(conversation, { id, title, named, updated, revision });
  tell(id, writing);
  return parted;
}

async function put(table, conversation) {
  const { id, title, updated, revision } = conversation;
  const text = conversation.messages.map((message) => message.text).join("\n").toLowerCase();
  await table("whole").put(conversation);
  await table("heads").put({ id, title, updated, revision });
  await table("words").put({ id, text });
  words?.set(id, text);
}

/** Keep conversations from a file. */
export async function add(conversations) {
  await within("readwrite", async (table) => {
    for (const one of conversations) await put(table, { ...one, title: titled(one), revision: 1 });
  });
  tell(null);
}

export async function remove(id) {
  words?.delete(id);
  await within("readwrite", async (table) => {
    for (const name of TABLES) await table(name).delete(id);
  });
  tell(id);
}

/** The ids of conversations in which all these words stand. */
export async function search(query) {
  if (!words) words = new Map((await within("readonly", (table) => table("words").all())).map(({ id, text }) => [id, text]));
  const wanted = query.toLowerCase().split(/\s+/).filter(Boolean);
  const found = new Set();
  for (const [id, text] of words) if (wanted.every((word) => text.includes(word))) found.add(id);
  return found;
}

export const tell = (id, writing = false) => channel?.postMessage({ id, writing });

/** Hear what other tabs keep or remove: the id of a conversation, or null for many, and whether it is being answered there. */
export function onChange(hear) {
  channel?.addEventListener("message", ({ data }) => {
    words = null;
    hear(data.id, data.writing);
  });
}

// What lies in the old place: answers that were being written as a page was left, and conversations of before there
// was a database.

/** Keep what cannot wait for a database, since the page is being left. */
export const rescue = (conversation) => store.write("rescue", conversation);

async function takeOver() {
  const left = store.read("rescue", null);
  if (left) {
    await save(left).catch(() => {});
    store.drop("rescue");
  }
  const list = store.read("conversations", null);
  if (!list) return;
  const found = list.map(({ id }) => [id, store.read(`conversation.${id}`, null)]).filter(([, one]) => one);
  await add(found.map(([, one]) => fromList(one)));
  for (const [id] of found) store.drop(`conversation.${id}`);
  store.drop("conversations");
}
