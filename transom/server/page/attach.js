// Text files as part of a message: chosen, or dropped anywhere on the page.

import { h, icon, showError } from "./dom.js";

const MOST = 400_000; // bytes: no model here reads more

/** A file as a message holds it: its name, and its text between fences longer than any in it. */
async function asText(file) {
  if (file.size > MOST)
    throw new Error(`${file.name} has ${Math.ceil(file.size / 1000).toLocaleString("en")} kB; at most ${MOST / 1000} kB of text go into a message.`);
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    text = "\0";
  }
  if (text.includes("\0")) throw new Error(`${file.name} is not a text file in UTF-8, and a model here reads only text.`);
  const fence = "`".repeat(Math.max(3, ...[...text.matchAll(/`+/g)].map(([run]) => run.length + 1)));
  return `${file.name}:\n\n${fence}\n${text.trimEnd()}\n${fence}\n\n`;
}

async function take(files, insert) {
  const read = await Promise.allSettled([...files].map(asText));
  const texts = read.filter(({ status }) => status === "fulfilled").map(({ value }) => value);
  if (texts.length) insert(texts.join(""));
  showError(read.filter(({ status }) => status === "rejected").map(({ reason }) => reason.message).join(" "));
}

/** The button that attaches. */
export function attachButton(insert) {
  const files = h("input", { type: "file", multiple: true, hidden: true, "aria-label": "Text files", onchange: () => (take(files.files, insert), (files.value = "")) });
  return [files, h("button", { class: "attach icon-button", type: "button", "aria-label": "Attach a text file", title: "Attach a text file", onclick: () => files.click() }, icon("clip"))];
}

/** Files dropped on the page go into the message; without this the browser would leave the page for them. */
export function takesFiles(insert) {
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    if (document.body.dataset.tab === "chat") take(event.dataTransfer.files, insert);
    else showError("Files can be dropped on the Chat tab; paste the text here.");
  });
}
