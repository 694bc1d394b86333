// The settings drawer, and the drawers' common shape.

import { $, h, icon } from "./dom.js";
import { DEFAULTS, onSettings, set, settings } from "./store.js";

/** Fill a <dialog> with a head and what belongs below it, and let a click beside it close it. */
export function drawer(dialog, title, ...children) {
  const close = h("button", { class: "icon-button", "aria-label": "Close", onclick: () => dialog.close() }, icon("close"));
  dialog.replaceChildren(
    h("div", { class: "drawer-head" }, h("h2", { id: `${dialog.id}-title` }, title), close),
    h("div", { class: "drawer-body" }, children),
  );
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
}

const NUMBERS = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.05, slider: true, empty: "auto",
    hint: "0 always takes the likeliest token; higher is freer. Empty: as the model's folder says, else 0.7 in a chat, 1 elsewhere." },
  { name: "topP", label: "Top-p", min: 0.05, max: 1, step: 0.05, slider: true, empty: "auto",
    hint: "Draw only from the likeliest tokens that make up this share. Empty: as the model's folder says, else 0.9 in a chat where no temperature is set, else 1." },
  { name: "maxTokens", label: "Longest answer", unit: "tokens", min: 1, max: 1000000, step: 1, empty: "automatic",
    hint: "Automatic: until it ends by itself, at most 2,048 or what the model still reads." },
  { name: "seed", label: "Seed", min: 0, max: 2147483647, step: 1, empty: "a new one each time",
    hint: "The same seed and settings write the same text again." },
];

let usual = {}; // by name, what holds for the model that is used where nothing is set; empty where that is not known
const fields = [];

/** Another model is used: what is set to nothing stands where that one's folder has it. */
export function usualOf({ temperature, top_p: topP } = {}) {
  usual = { temperature, topP };
  for (const show of fields) show();
}

function numberField({ name, label, unit, min, max, step, slider, empty, hint }) {
  const id = `set-${name}`;
  const input = h("input", {
    id, type: "number", min, max, step, inputmode: step < 1 ? "decimal" : "numeric",
    placeholder: empty, "aria-describedby": `${id}-hint`, oninput: () => take(input),
  });
  const range = slider && h("input", { type: "range", min, max, step, "aria-label": label, oninput: () => take(range) });
  const take = (from) => {
    const value = from.value === "" ? (empty ? null : DEFAULTS[name]) : Number(from.value);
    const right = from.value === "" || (from.validity.valid && Number.isFinite(value));
    from.setAttribute("aria-invalid", !right);
    wrong.hidden = right;
    if (right) set(name, value);
  };
  const wrong = h("p", { class: "hint wrong", role: "alert", hidden: true }, `From ${min.toLocaleString("en")} to ${max.toLocaleString("en")}${step === 1 ? ", whole" : ""}; it stays as it was.`);
  const show = () => {
    if (document.activeElement !== input) input.value = settings[name] ?? "";
    if (!range) return;
    const auto = settings[name] === null;
    range.value = settings[name] ?? usual[name] ?? 1;
    range.toggleAttribute("data-auto", auto);
    if (auto) range.setAttribute("aria-valuetext", `automatic${usual[name] === undefined ? "" : `, ${usual[name]}`}`);
    else range.removeAttribute("aria-valuetext");
    input.placeholder = usual[name] === undefined ? empty : `${empty}: ${usual[name]}`;
  };
  fields.push(show);
  onSettings((changed) => changed === name && show());
  show();
  return h("div", { class: "field" },
    h("label", { for: id }, label, unit ? h("span", { class: "quiet" }, ` ${unit}`) : ""),
    h("div", { class: slider ? "with-slider" : "" }, range, input),
    wrong, h("p", { class: "hint", id: `${id}-hint` }, hint));
}

export function settingsDrawer() {
  const dialog = $("settings");
  const system = h("textarea", {
    id: "set-system", rows: 4, dir: "auto", placeholder: "The model’s own, or none", oninput: () => set("system", system.value),
  });
  system.value = settings.system;
  const tint = h("input", { type: "checkbox", role: "switch", onchange: () => set("tint", tint.checked) });
  tint.checked = settings.tint;
  onSettings((name) => name === "tint" && (tint.checked = settings.tint));
  const reset = () => {
    for (const [name, value] of Object.entries(DEFAULTS)) set(name, value);
    system.value = DEFAULTS.system;
  };
  drawer(dialog, "Settings",
    NUMBERS.map(numberField),
    h("div", { class: "field" },
      h("label", { for: "set-system" }, "System text"), system,
      h("p", { class: "hint" }, "Said to the model before every new conversation, and never dropped.")),
    h("label", { class: "switch" },
      tint, h("span", {}, "Tint tokens by probability"),
      h("span", { class: "hint" }, "The less sure the model was, the stronger the colour.")),
    h("button", { class: "button", onclick: reset }, "Back to the defaults"));
  $("settings-open").append(icon("sliders"));
  $("settings-open").addEventListener("click", () => dialog.showModal());
}

/** How sure the colours are, for wherever tokens are tinted. */
export function tintSwitch() {
  const button = h("button", { class: "action tint-switch", type: "button", onclick: () => set("tint", !settings.tint) },
    "Tint tokens",
    h("span", { class: "legend", "aria-hidden": "true" },
      "sure", [0, 1, 2, 3, 4].map((step) => h("i", { "data-doubt": step })), "unsure"));
  const show = () => {
    button.setAttribute("aria-pressed", settings.tint);
    document.documentElement.toggleAttribute("data-tint", settings.tint);
  };
  onSettings((name) => name === "tint" && show());
  show();
  return button;
}

const THEMES = ["system", "light", "dark"];

export function themeButton() {
  const button = $("theme");
  const show = (theme) => {
    button.replaceChildren(icon(theme));
    button.setAttribute("aria-label", `Theme: ${theme}`);
    button.title = `Theme: ${theme}`;
  };
  const now = () => document.documentElement.dataset.theme ?? "system";
  button.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(now()) + 1) % THEMES.length];
    if (next === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    try {
      localStorage.setItem("transom.theme", next); // as it is: theme.js reads it before anything else
    } catch {
      /* it holds until the reload */
    }
    show(next);
  });
  show(now());
}
