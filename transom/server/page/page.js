// The page: which models there are, which tab is open, and what belongs to all of them.
//
// Read next: chat, tokens, answer, api.

import { ApiError, onKeyWanted } from "./api.js";
import { Ask } from "./ask.js";
import { Chat } from "./chat.js";
import { Classify } from "./classify.js";
import { Compare, options } from "./compare.js";
import { Complete } from "./complete.js";
import { $, action, copy, h, showError } from "./dom.js";
import { memoryPanel } from "./memory.js";
import { settingsDrawer, themeButton, usualOf } from "./settings.js";
import { findModels, knowledgeBases } from "./served.js";
import * as database from "./database.js";
import { drawerOnPhones } from "./sidebar.js";
import * as store from "./store.js";
import { Translate } from "./translate.js";

// A tab, the models it works with, and what to serve where there is none.
const TABS = {
  chat: { make: Chat, samples: true, takes: (model) => model.chat, needs: "a model with a chat template" },
  ask: { make: Ask, takes: (model) => model.chat, served: () => knowledgeBases().length > 0, command: "transom serve --index kb" },
  complete: { make: Complete, samples: true, takes: (model) => ["generate", "chat"].includes(model.task), needs: "a model that writes" },
  translate: { make: Translate, takes: (model) => model.task === "translate", needs: "a model that translates" },
  classify: { make: Classify, takes: (model) => model.task === "classify", needs: "a classifier" },
  compare: {
    make: Compare, takes: (model) => ["generate", "chat"].includes(model.task), least: 2, own: true,
    needs: "a second model that writes, or an adapter of the one (--adapter NAME=FOLDER),",
  },
};
const HINTS = {
  chat: ["A model whose folder has no template can still chat in a plain transcript: add --chat-template plain.", "transom train --budget 3min"],
  ask: ["An index is made of a folder of text, Markdown, HTML, PDF or DOCX files, or of a table:", "transom index handbook/ --out kb"],
  complete: ["Any decoder will do: GPT, Llama, Qwen, an LSTM.", "transom train --budget 3min"],
  translate: ["Any encoder-decoder will do: Marian, T5, or one trained here, for instance from dates in words to dates in numbers:", "transom train --task translate --budget 40s"],
  classify: ["Any encoder with classes will do: BERT, RoBERTa, or one trained here, from a table with a column of texts and one of labels:", "transom train TABLE.csv --task classify"],
  compare: ["A model before and after it was fine-tuned, say:", "transom finetune FOLDER --data FILE"],
};

let models = [];
const rooms = {};

function askForKey(message) {
  const dialog = $("key");
  return new Promise((resolve) => {
    const input = h("input", { type: "password", id: "key-field", autocomplete: "off", spellcheck: "false", required: true });
    const form = h("form", { method: "dialog" },
      h("h2", { id: "key-title" }, message),
      h("label", { for: "key-field" }, "Key"), input,
      h("p", { class: "hint" }, "It is kept until this tab is closed, and sent to this server only."),
      h("div", { class: "desk-foot" }, h("button", { class: "button primary", value: "use" }, "Use it"),
        h("button", { class: "button", value: "", formnovalidate: true }, "Cancel")));
    dialog.replaceChildren(form);
    dialog.returnValue = "";
    dialog.onclose = () => resolve(dialog.returnValue === "use" ? input.value.trim() : null);
    dialog.showModal();
  });
}

/** Several requests may want a key at once; the person is asked one question. */
let asking = null;
onKeyWanted((message) => (asking ??= askForKey(message).finally(() => (asking = null))));

function openTab(name, focus = false) {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const here = tab.dataset.tab === name;
    tab.setAttribute("aria-selected", here);
    tab.tabIndex = here ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !here;
    if (here && focus) tab.focus();
    if (here) tab.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  if (document.body.dataset.tab !== name) $("insight").look?.close(); // what it shows belongs to the other tab
  document.body.dataset.tab = name;
  $("settings-open").hidden = !TABS[name].samples; // the others have all of theirs in sight
  store.write("tab", name);
  fillModels(name);
  for (const area of document.querySelectorAll("textarea")) area.dispatchEvent(new Event("fit"));
}

function tabs() {
  const all = [...document.querySelectorAll("[role=tab]")];
  all.forEach((tab, place) => {
    tab.addEventListener("click", () => openTab(tab.dataset.tab));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1, Home: -place, End: all.length - 1 - place }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      openTab(all[(place + step + all.length) % all.length].dataset.tab, true);
    });
  });
}

/** The models that the open tab can use, the last one used there first. */
function fillModels(tab) {
  const fit = models.filter(TABS[tab].takes);
  const picker = $("model");
  picker.replaceChildren(...options(fit));
  picker.parentNode.hidden = !fit.length || Boolean(TABS[tab].own);
  picker.disabled = fit.length < 2;
  const last = store.read(`model.${tab}`, null);
  const chosen = fit.find((model) => model.id === last) ?? fit[0] ?? null;
  if (chosen) picker.value = chosen.id;
  use(tab, chosen);
}

function use(tab, model) {
  rooms[tab]?.use(model);
  usualOf(model && (tab === "chat" || model.task !== "chat") ? model.sampling : {}); // a chat model's are those of chats
}

function pickModel() {
  const tab = document.body.dataset.tab;
  const id = $("model").value;
  store.write(`model.${tab}`, id);
  use(tab, models.find((model) => model.id === id) ?? null);
}

/** What a tab says where nothing that is served can do its work. */
function idle(name) {
  const [hint, makes] = HINTS[name];
  const command = (line) => h("div", { class: "command" }, h("pre", {}, h("code", {}, line)), action("Copy", (event) => copy(line, event.target)));
  return h("div", { class: "idle" },
    h("h1", {}, { compare: "Nothing here to compare.", ask: "There are no documents here to ask." }[name] ?? `No model here can ${name}.`),
    h("p", {}, name === "ask" ? "Serve an index of them, with models or without:" : `Serve ${TABS[name].needs} beside ${models.map((model) => model.name).join(", ") || "others"}:`),
    command(TABS[name].command ?? `transom serve ${models.length ? "FOLDER ANOTHER-FOLDER" : "FOLDER"}`),
    h("p", { class: "quiet" }, hint), command(makes));
}

/** Escape closes what is open, and else stops what is being written. */
function escape(closeShelf) {
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || document.querySelector("dialog[open], :popover-open")) return;
    if (!closeShelf()) rooms[document.body.dataset.tab]?.stop();
  });
}

async function start() {
  themeButton();
  settingsDrawer();
  escape(drawerOnPhones());
  tabs();
  try {
    [models] = await Promise.all([findModels(), database.open()]);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    showError(error.message);
    $("error").append(h("button", { class: "button", onclick: () => location.reload() }, "Try again"));
    return;
  }
  for (const [name, { make: Room, takes, least = 1, served = () => models.filter(takes).length >= least }] of Object.entries(TABS)) {
    const fit = models.filter(takes);
    $(`tab-${name}`).toggleAttribute("data-idle", !served());
    if (served()) rooms[name] = new Room($(`panel-${name}`), fit);
    else $(`panel-${name}`).append(idle(name));
  }
  const open = store.read("tab", null);
  const first = Object.keys(TABS).find((name) => rooms[name]) ?? "chat";
  openTab(rooms[open] ? open : first);
  await rooms.chat?.openNamed();
  $("model").addEventListener("change", pickModel);
  document.documentElement.setAttribute("data-ready", "");
  await memoryPanel().catch((error) => showError(error.message));
}

start();
