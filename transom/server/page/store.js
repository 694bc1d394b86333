// Small things that stay in this browser: settings, drafts, what was open. Everything here works without storage
// too, only not past a reload. Conversations have a place of their own (database.js).

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

/** Another tab changed the settings. */
addEventListener("storage", ({ key }) => {
  if (key !== `${PREFIX}settings`) return;
  Object.assign(settings, DEFAULTS, read("settings", {}));
  for (const name of Object.keys(DEFAULTS)) for (const watch of watchers) watch(name);
});

export function onSettings(watch) {
  watchers.add(watch);
}

export function set(name, value) {
  settings[name] = value;
  write("settings", settings);
  for (const watch of watchers) watch(name);
}
