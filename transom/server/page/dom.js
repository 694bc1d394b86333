// Building the page. Text only ever becomes text nodes: nothing here, and nothing anywhere, parses HTML.

const SVG = "http://www.w3.org/2000/svg";

const ICONS = {
  plus: "M12 5v14M5 12h14",
  menu: "M4 7h16M4 12h16M4 17h10",
  sliders: "M4 8h9M17 8h3M4 16h3M11 16h9M15 6v4M9 14v4",
  memory: "M7 4h10v16l-5-3.5L7 20z",
  system: "M12 4a8 8 0 1 0 0 16zM12 4a8 8 0 0 1 0 16",
  light: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8M12 3v2M12 19v2M3 12h2M19 12h2M5.6 5.6 7 7M17 17l1.4 1.4M18.4 5.6 17 7M7 17l-1.4 1.4",
  dark: "M19 14.5A7.5 7.5 0 0 1 9.5 5 7.5 7.5 0 1 0 19 14.5",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  close: "M6 6l12 12M18 6 6 18",
  bin: "M5 7h14M10 7V5h4v2M7 7l1 12h8l1-12",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  down: "M12 5v14M6 13l6 6 6-6",
  more: "M5.5 12h.01M12 12h.01M18.5 12h.01",
  clip: "M19 11l-7.5 7.5a4.6 4.6 0 0 1-6.5-6.5L13 4a3.1 3.1 0 0 1 4.4 4.4l-7.7 7.7a1.5 1.5 0 0 1-2.2-2.2L14 7.4",
};

/** An element: attributes as they are written, `onX` as listeners, booleans as presence, children as text. */
export function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(2).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** One of the page's own drawings. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [key, value] of Object.entries({ viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" }))
    svg.setAttribute(key, value);
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

export const $ = (id) => document.getElementById(id);

/** A quiet button of words. */
export const action = (label, onclick, attributes = {}) =>
  h("button", { type: "button", class: "action", onclick, ...attributes }, label);

/** Say something to a screen reader, and to nobody else. */
export function announce(text) {
  $("live").textContent = text;
}

/** One clear line about what went wrong, until the next success or a click on its cross. */
export function showError(message) {
  const line = $("error");
  line.hidden = !message;
  line.replaceChildren();
  if (message)
    line.append(
      h("span", {}, message),
      h("button", { class: "icon-button", "aria-label": "Dismiss", onclick: () => showError("") }, icon("close")),
    );
}

/** Let a text area be as high as its text, up to what its style allows. */
export function growing(area) {
  const fit = () => {
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
  };
  area.addEventListener("input", fit);
  area.addEventListener("fit", fit); // it has just come into sight
  requestAnimationFrame(fit);
  return fit;
}

/** Copy, also where the page was not loaded from this machine and the browser offers no clipboard. */
export async function copy(text, button) {
  let copied = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = h("textarea", { class: "hidden", "aria-hidden": "true" });
    document.body.append(area);
    area.value = text;
    area.select();
    copied = document.execCommand("copy");
    area.remove();
    button.focus();
  }
  const label = (button.dataset.label ??= button.textContent);
  const said = copied ? "Copied" : "Could not copy";
  button.textContent = said;
  announce(said);
  clearTimeout(button.timer);
  button.timer = setTimeout(() => (button.textContent = label), 1400);
}

/** Give the person a text as a file. */
export function save(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

const SHOWN = { " ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍" };

/** A token's text with its spaces to be seen, and nothing that could turn the text around it. */
export const visible = (text) =>
  [...text].map((c) => SHOWN[c] ?? (/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/u.test(c) ? `\\u${c.codePointAt(0).toString(16).padStart(4, "0")}` : c)).join("") || "∅";

/** Call `work` once, some time after the last of several calls. */
export function later(work, wait) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...values), wait);
  };
}

export const count = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

/** A probability for people: never 0 % or 100 % unless it is. */
export function percent(p) {
  if (p >= 0.9995 && p < 1) return "> 99.9 %";
  if (p < 0.001 && p > 0) return "< 0.1 %";
  return `${(100 * p).toFixed(1)} %`;
}

/** How a text is sent from where Enter begins a line. */
export const SHORTCUT = /Mac|iPhone|iPad/.test(navigator.platform) ? "⌘ Enter" : "Ctrl + Enter";

/** Whether a key belongs to a composition of letters; Safari says only by keyCode that Enter ends one. */
export const composing = (event) => event.isComposing || event.keyCode === 229;
