// What stays in this browser: conversations, settings, drafts. Everything here works without storage too,
// only not past a reload; and a full storage gives up the alternatives of old tokens before any text.

const PREFIX = "transom.";
const unsaved = new Map();

export function read(name, fallback) {
  try {
    const text = localStorage.getItem(PREFIX + name);
    return text === null ? (unsaved.get(name) ?? fallback) : JSON.parse(text);
  } catch {
    return unsaved.get(name) ?? fallback;
  }
}

/** Keep a value; false where there was no room or no storage. */
export function write(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
    unsaved.delete(name);
    return true;
  } catch {
    unsaved.set(name, value);
    return false;
  }
}

export function drop(name) {
  unsaved.delete(name);
  try {
    localStorage.removeItem(PREFIX + name);
  } catch {
    /* nothing was kept */
  }
}

// Settings; null leaves it to what the model's folder says.

export const DEFAULTS = {
  temperature: null, topP: null, maxTokens: null, seed: null, system: "", tint: false, beam: null, threshold: 0.5,
};

export const settings = { ...DEFAULTS, ...read("settings", {}) };

const watchers = new Set();

export function onSettings(watch) {
  watchers.add(watch);
}

export function set(name, value) {
  settings[name] = value;
  write("settings", settings);
  for (const watch of watchers) watch(name);
}

// Conversations: { id, title, updated, messages }. A message is { role: "user", text, facts } or
// { role: "assistant", versions: [{ text, tokens, finish, model, seed }], shown }.

export const conversations = () => read("conversations", []);

export const load = (id) => read(`conversation.${id}`, null);

/** Keep a conversation, first in the list; false where only its text could be kept, or nothing. */
export function save(conversation) {
  conversation.updated = Date.now();
  const said = conversation.messages.find((message) => message.role === "user");
  conversation.title = (said ? said.text : "New conversation").replace(/\s+/g, " ").slice(0, 60);
  const { id, title, updated } = conversation;
  write("conversations", [{ id, title, updated }, ...conversations().filter((one) => one.id !== id)]);
  if (write(`conversation.${id}`, conversation)) return true;
  for (const old of conversations().reverse()) {
    const other = old.id === id ? conversation : load(old.id);
    if (other && old.id !== id) write(`conversation.${old.id}`, withoutAlternatives(other));
    if (write(`conversation.${id}`, conversation)) return true;
  }
  write(`conversation.${id}`, withoutAlternatives(conversation));
  return false;
}

export function remove(id) {
  drop(`conversation.${id}`);
  write("conversations", conversations().filter((one) => one.id !== id));
}

function withoutAlternatives(conversation) {
  const messages = conversation.messages.map((message) =>
    message.role === "user"
      ? message
      : { ...message, versions: message.versions.map((version) => ({ ...version, tokens: [] })) },
  );
  return { ...conversation, messages };
}
