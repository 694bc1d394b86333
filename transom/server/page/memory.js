// The memory panel: what the server remembers of this person; to see, edit, forget and switch off.

import { ApiError, call, get, post } from "./api.js";
import { $, action, count, h, icon, showError } from "./dom.js";
import { drawer } from "./settings.js";

let memory = null; // { enabled, facts, used } or null: this server remembers nothing, or not for this page

const switchBox = h("input", { type: "checkbox", role: "switch", onchange: () => turn(switchBox.checked) });
const list = h("ul", { class: "facts" });
const state = h("p", { class: "hint" });
const words = h("input", { type: "text", "aria-label": "Something to remember", placeholder: "Something to remember", maxlength: 1000 });
const trouble = h("p", { class: "error", role: "alert", hidden: true });
const used = h("p", { class: "quiet", id: "memory-used" }); // for the start of a conversation
const locked = h("p", { class: "hint", hidden: true });
const place = h("p", { class: "hint path" });
const open = h("div", {});

export async function memoryPanel() {
  const dialog = $("memory");
  const form = h("form", { class: "inline-form", onsubmit: (event) => (event.preventDefault(), add()) },
    words, h("button", { class: "button" }, "Keep"));
  open.append(
    h("label", { class: "switch" }, switchBox, h("span", {}, "Remember across conversations"), state),
    trouble, list, form,
    place, h("p", { class: "hint" }, "Only what you ask to be kept is kept: here, or by saying “remember that …”. It lies on the server, and what you forget is overwritten there."));
  drawer(dialog, "Memory", locked, open);
  $("memory-open").append(icon("memory"));
  $("memory-open").addEventListener("click", () => (dialog.showModal(), refresh()));
  await refresh();
}

/** What stands where a conversation begins: how much is remembered from others. */
export const remembered = () => used;

/** What bears on a message: { note, facts, kept, not_kept }. A memory that fails holds no message up. */
export async function recall(said) {
  if (!memory?.enabled) return {};
  try {
    const heard = await post("/memory/recall", { text: said });
    if (heard.kept) await refresh();
    return heard;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    showError(`The memory was not asked: ${error.message}`);
    return {};
  }
}

export async function forget(id) {
  await call("DELETE", `/memory/${id}`);
  await refresh();
}

async function refresh() {
  let why = null;
  try {
    memory = await get("/memory");
  } catch (error) {
    memory = null;
    if (!(error instanceof ApiError && [403, 404].includes(error.status))) throw error;
    if (error.status === 403) why = error.message;
  }
  $("memory-open").hidden = !memory && !why;
  locked.hidden = !why;
  locked.textContent = why ?? "";
  open.hidden = !memory;
  used.textContent = memory?.used ? `${memory.used}.` : "";
  place.textContent = memory?.path ? `Kept in ${memory.path}, which every server of yours shares unless it is started with --memory another file.` : "";
  if (memory) show();
}

/** Do something to the memory; what the server refuses is said in the panel. */
async function attempt(work) {
  trouble.hidden = true;
  try {
    await work();
    await refresh();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    trouble.textContent = error.message;
    trouble.hidden = false;
  }
}

const turn = (enabled) => attempt(() => call("PATCH", "/memory", { enabled }));

const add = () =>
  attempt(async () => {
    if (words.value.trim()) await post("/memory", { text: words.value });
    words.value = "";
  });

function show() {
  switchBox.checked = memory.enabled;
  state.textContent = memory.enabled
    ? `${count(memory.facts.length, "fact")} kept. Those that bear on a message go into its prompt.`
    : `Off: nothing is kept or used. ${count(memory.facts.length, "fact")} stay until you forget them.`;
  list.replaceChildren(...memory.facts.map(row));
}

function row(fact) {
  const text = h("span", { class: "fact-text" }, fact.text);
  const item = h("li", {}, text,
    h("span", { class: "actions" },
      action("Edit", () => edit(item, fact)),
      action("Forget", () => attempt(() => call("DELETE", `/memory/${fact.id}`)), { "aria-label": `Forget: ${fact.text}` })));
  return item;
}

function edit(item, fact) {
  const input = h("input", { type: "text", "aria-label": "The fact in other words", maxlength: 1000 });
  input.value = fact.text;
  const save = (event) => {
    event.preventDefault();
    attempt(() => call("PATCH", `/memory/${fact.id}`, { text: input.value }));
  };
  const back = (event) => {
    if (event.key !== "Escape") return;
    event.preventDefault(); // the panel stays open
    show();
  };
  item.replaceChildren(
    h("form", { class: "inline-form", onsubmit: save, onkeydown: back }, input, h("button", { class: "button" }, "Save")));
  input.focus();
}

