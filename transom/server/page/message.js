// One message of a conversation as it stands on the page, with what can be done to it.

import { action, copy, count, h, icon } from "./dom.js";
import { ending, lookInside, written as ofTokens } from "./answer.js";
import { withNote } from "./context.js";
import { ways } from "./conversation.js";
import { forget, remembered } from "./memory.js";
import { settings } from "./store.js";
import { Written } from "./tokens.js";

const EXAMPLES = [
  ["Ask, then click a word", "Write two sentences about the sea.", "every word of the answer shows how sure the model was, and what else it might have said"],
  ["Take another way", "The best thing about Mondays is", "pick another word, and the model goes on from there"],
  ["Look inside", "Why is the sky blue? Answer in one sentence.", "Look inside, below the answer, shows which words weighed, layer by layer"],
];

const size = ({ parameters: n }) => (n ? `${n >= 1e9 ? `${(n / 1e9).toFixed(1)} billion` : n >= 1e6 ? `${Math.round(n / 1e6)} million` : n.toLocaleString("en")} parameters` : "");

/** How far a model of this size can be believed. */
const worth = ({ parameters: n }) =>
  !n ? "" : n < 2e7 ? "it writes in the manner of what it learned from, and knows little" : n < 1e9 ? "fluent, and often wrong about facts" : "fluent; check what matters";

/** What stands where nothing was said yet. */
export function empty(chat) {
  const { model } = chat;
  const told = [size(model), worth(model)].filter(Boolean).join(": ");
  return h("div", { class: "empty" },
    h("div", { class: "panes", "aria-hidden": "true" }, [1, 3, 4, 2, 0].map((step) => h("i", { "data-doubt": step }))),
    h("h1", {}, `${model.name} runs on this computer.`),
    h("p", {}, told && `${told}. `, `It reads ${model.max_len.toLocaleString("en")} tokens at a time; when a conversation grows past that, this page says what was dropped.`),
    h("ul", { class: "examples" }, EXAMPLES.map(([name, text, shows]) =>
      h("li", {}, h("button", { class: "button", type: "button", onclick: () => chat.ask(text, 0) }, name), h("span", {}, `“${text}”: ${shows}.`)))),
    systemText(chat), remembered());
}

/** The system text of this conversation: what is set for new ones, until something is said. */
export function systemText(chat) {
  const { conversation } = chat;
  const area = h("textarea", { rows: 3, dir: "auto", "aria-label": "System text of this conversation", placeholder: chat.model?.default_system || "None" });
  area.value = conversation.system ?? settings.system;
  area.addEventListener("input", () => {
    conversation.system = area.value;
    if (conversation.messages.length) chat.keep();
    chat.recount();
  });
  const name = () => (area.value.trim() ? `System text: ${area.value.trim().slice(0, 80)}` : "System text of this conversation");
  const summary = h("summary", { dir: "auto" }, name());
  area.addEventListener("input", () => (summary.textContent = name()));
  return h("details", { class: "system" }, summary, area);
}

/** What the user said. */
export function said(chat, message, place) {
  const { facts, kept, notKept, text } = message;
  const waits = place === chat.messages.length - 1 && !chat.writing;
  return h("article", { class: "message user", "data-place": place, "aria-label": "You" },
    h("h2", { class: "who" }, "You"),
    h("div", { class: "body" },
      h("div", { class: "plain", dir: "auto" }, text),
      facts?.length && h("p", { class: "quiet facts-used" }, `${count(facts.length, "remembered fact")} went along: `, facts.map((fact, i) => [i ? " · " : "", used(chat, message, fact)]),
        waits || place === chat.messages.length - 2 ? [" ", action("Not this time", () => without(chat, message, place), { title: "Answer again without them" })] : ""),
      kept && h("p", { class: "quiet" }, "Kept in memory. ", action("Undo", (event) => takeBack(chat, message, event.target.parentNode))),
      notKept && h("p", { class: "quiet" }, `Not kept in memory: ${notKept}.`),
      h("div", { class: "actions" },
        others(chat, message, "message"),
        action("Copy", (event) => copy(text, event.target)),
        action("Edit", () => chat.edit(place), { "data-act": "edit" }),
        waits && action("Answer", () => chat.answer(place)))));
}

/** Answer a message again without what was remembered. */
function without(chat, message, place) {
  delete message.note;
  delete message.facts;
  return chat.answer(place);
}

/** A fact that went along, with the way to forget it for good. */
function used(chat, message, fact) {
  if (typeof fact === "string") return fact; // from a file, or of an earlier version of this page
  const gone = async (event) => {
    await forget(fact.id).catch(() => {}); // forgotten elsewhere already
    event.target.replaceWith("forgotten");
    message.facts = message.facts.map((one) => (one.id === fact.id ? fact.text : one));
    chat.keep();
  };
  return h("span", {}, fact.text, " (", action("Forget", gone, { "aria-label": `Forget: ${fact.text}` }), ")");
}

async function takeBack(chat, message, line) {
  await forget(message.kept).catch(() => {}); // forgotten elsewhere already
  delete message.kept;
  chat.keep();
  line.remove();
}

/** What the model answered. The node's `written` can be written on. */
export function answered(chat, message, place) {
  const cannot = chat.cannotGoOn(message);
  const written = new Written({
    markdown: true,
    onpick: cannot ? null : (token, other) => chat.branch(place, token, other),
    warning: () => cannot || chat.aside(place),
  });
  written.update(message.text, message.tokens);
  const writing = chat.writing && place === chat.messages.length - 1;
  const node = h("article", { class: "message assistant", "data-place": place, "data-writing": Boolean(writing), "aria-label": message.model },
    h("h2", { class: "who" }, message.model),
    h("div", { class: "body" }, written.node, writing ? h("p", { class: "quiet waiting" }) : foot(chat, message, place, cannot)));
  node.written = written;
  return node;
}

/** Says in the node that `find` gives, from the first second on, that a prompt is being read, until it is over. */
export function waiting(find) {
  const began = performance.now();
  let reads = null;
  let expected = null;
  const timer = setInterval(() => {
    const seconds = Math.floor((performance.now() - began) / 1000);
    const line = find()?.querySelector?.(".waiting");
    if (!line || seconds < 1) return;
    if (!line.textContent) requestAnimationFrame(() => line.scrollIntoView({ block: "nearest" }));
    const of = expected > seconds ? ` of about ${expected}` : "";
    line.textContent = reads ? `Reading ${count(reads, "token")} … ${seconds} s${of}` : `Counting what fits … ${seconds} s`;
  }, 200);
  return {
    /** The prompt is on its way: its tokens, and tokens a second as this model read the last one, or null. */
    reads: (nTokens, rate) => ([reads, expected] = [nTokens, rate && Math.round(nTokens / rate)]),
    /** Something came. Gives the tokens a second that were read, where it took long enough to tell. */
    came: () => {
      const seconds = (performance.now() - began) / 1000;
      return reads && seconds > 1 ? reads / seconds : null;
    },
    over: () => {
      clearInterval(timer);
      const line = find()?.querySelector?.(".waiting");
      if (line) line.textContent = "";
    },
  };
}

function foot(chat, message, place, cannot) {
  const { finish, tokens, took, seed, text } = message;
  const last = place === chat.messages.length - 1;
  const unfinished = finish !== "stop" && tokens.length > 0;
  const speed = took > 0.5 ? `${(tokens.length / took).toFixed(tokens.length / took < 10 ? 1 : 0)} tokens/s` : "";
  const elsewhere = last && chat.elsewhere.has(chat.conversation.id);
  const ended = elsewhere ? "Being written in another tab." : ending(finish, tokens.length);
  const goOn = last && unfinished && !elsewhere && h("button", { class: "button", type: "button", disabled: Boolean(cannot), title: cannot || null, onclick: () => chat.goOn(place) }, "Go on");
  return h("div", { class: "actions" },
    goOn,
    others(chat, message, "answer"),
    action("Copy", (event) => copy(text, event.target)),
    tokens.length > 0 && message.asked && action("Look inside", () => look(chat, message, place)),
    last && !elsewhere && action("Regenerate", () => chat.again(place)),
    ended && h("span", { class: "quiet ended" }, ended),
    speed && h("span", { class: "quiet", title: seed ? `seed ${seed}` : null }, speed));
}

function look(chat, version, place) {
  const { model, head, above, first } = version.asked;
  const messages = [...head, ...withNote(above, chat.plainly(place).slice(first))];
  return lookInside({ title: version.model, asked: { model, messages, ...ofTokens(version) } });
}

/** What else was said in this place, "2 of 3" with arrows; each has its own way on. */
function others(chat, message, what) {
  const all = ways(chat.conversation, message);
  if (all.length < 2) return null;
  const at = all.indexOf(message);
  const button = (name, label, step, disabled) =>
    h("button", { class: "icon-button", type: "button", "aria-label": label, disabled: disabled || Boolean(chat.writing), onclick: () => chat.turned(message, step) }, icon(name));
  return h("span", { class: "versions" },
    button("left", `The ${what} before`, -1, at === 0),
    `${at + 1} of ${all.length}`,
    button("right", `The next ${what}`, 1, at === all.length - 1));
}
