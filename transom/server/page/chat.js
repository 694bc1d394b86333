// Chat: what was said, the answer as it is written, and the ways back (edit, regenerate, another token).

import { $, announce, composing, count, growing, h, icon, later, showError } from "./dom.js";
import { CHAT, branch, sampling, stream } from "./answer.js";
import { Meter, fitting, roomFor, tooLong, withNote } from "./context.js";
import { recall } from "./memory.js";
import { answered, empty, said } from "./message.js";
import { tintSwitch } from "./settings.js";
import { listConversations } from "./sidebar.js";
import * as store from "./store.js";

const fresh = () => ({ id: crypto.getRandomValues(new Uint32Array(2)).join("-"), title: "", updated: 0, messages: [] });

/** Messages as the API wants them. */
const plainly = (messages) =>
  messages.map((message) =>
    message.role === "user"
      ? { role: "user", content: message.text }
      : { role: "assistant", content: message.versions[message.shown].text },
  );

export class Chat {
  constructor(panel) {
    this.panel = panel;
    this.model = null;
    this.writing = null; // the AbortController of the answer being written
    this.first = 0; // the first message that the model still reads
    this.conversation = store.load(store.read("open", "")) ?? fresh();
    this.build();
    this.render();
    this.list();
    const recount = later(() => this.count(), 350);
    this.recount = recount;
    addEventListener("pagehide", () => this.writing && store.save(this.conversation)); // with what has come
    store.onSettings((name) => ["system", "maxTokens"].includes(name) && recount());
  }

  build() {
    this.thread = h("div", { class: "thread", role: "log", "aria-label": "Conversation", "aria-live": "off" });
    this.scroller = h("div", { class: "scroller" }, this.thread);
    this.input = h("textarea", {
      rows: 1, class: "say", "aria-label": "Message", enterkeyhint: "send",
      onkeydown: (event) => this.key(event), oninput: () => this.drafted(),
    });
    this.input.value = store.read("draft.chat", "");
    this.fit = growing(this.input);
    this.button = h("button", { class: "round", type: "submit" });
    this.meter = new Meter();
    const form = h("form", { class: "composer", onsubmit: (event) => (event.preventDefault(), this.pressed()) },
      h("div", { class: "sheet" }, this.input, this.button),
      h("div", { class: "composer-foot" }, this.meter.node, tintSwitch()));
    this.panel.append(this.scroller, form);
    $("new-chat").append(icon("plus"), "New conversation");
    $("new-chat").addEventListener("click", () => this.open(fresh()));
    this.ready();
  }

  /** The model to talk to; null where none of those served can chat. */
  use(model) {
    this.model = model;
    this.ready();
    if (!this.conversation.messages.length) this.render();
    this.recount();
  }

  ready() {
    const busy = Boolean(this.writing);
    this.button.replaceChildren(icon(busy ? "stop" : "send"));
    this.button.setAttribute("aria-label", busy ? "Stop" : "Send");
    this.button.title = busy ? "Stop (Esc)" : "Send (Enter)";
    this.button.disabled = !busy && (!this.model || !this.input.value.trim());
    this.button.classList.toggle("stopping", busy);
    this.input.placeholder = this.model ? `Say something to ${this.model.name}` : "";
    this.panel.toggleAttribute("data-writing", busy);
  }

  drafted() {
    store.write("draft.chat", this.input.value);
    this.ready();
    this.recount();
  }

  key(event) {
    if (event.key === "Enter" && !event.shiftKey && !composing(event)) {
      event.preventDefault();
      if (!this.writing) this.pressed();
    } else if (event.key === "ArrowUp" && !this.input.value) {
      const last = this.conversation.messages.findLastIndex((message) => message.role === "user");
      if (last >= 0) (event.preventDefault(), this.edit(last));
    }
  }

  pressed() {
    if (this.writing) return this.stop();
    const text = this.input.value.trim();
    if (!text || !this.model) return;
    this.input.value = "";
    this.fit();
    store.write("draft.chat", "");
    this.ask(text, this.conversation.messages.length);
  }

  stop() {
    this.writing?.abort();
  }

  // Conversations

  open(conversation) {
    this.stop();
    this.conversation = conversation;
    this.first = 0;
    store.write("open", conversation.id);
    showError("");
    this.render();
    this.list();
    this.recount();
    this.input.focus();
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  list() {
    listConversations({
      open: this.conversation.id,
      onopen: (id) => this.open(store.load(id) ?? fresh()),
      ondelete: (id) => id === this.conversation.id && this.open(fresh()),
    });
  }

  keep(conversation = this.conversation) {
    if (conversation === this.conversation) store.write("open", conversation.id);
    if (!conversation.messages.length) store.remove(conversation.id);
    else if (!store.save(conversation))
      showError("This browser's storage is full: older answers lost the alternatives of their tokens, or this one cannot be kept. Delete conversations to make room.");
    this.list();
  }

  // Messages

  render() {
    const { messages } = this.conversation;
    if (!messages.length) return this.thread.replaceChildren(this.model ? empty(this.model) : "");
    this.thread.replaceChildren(...messages.map((message, place) => this.message(message, place)));
    this.drop(this.first);
  }

  message(message, place) {
    return message.role === "user" ? said(this, message, place) : answered(this, message, place);
  }

  node(place) {
    return this.thread.querySelector(`[data-place="${place}"]`);
  }

  /** Another version of message `place` is shown. */
  turned(place) {
    this.keep();
    this.replace(place);
    this.recount();
  }

  replace(place) {
    this.node(place).replaceWith(this.message(this.conversation.messages[place], place));
    this.drop(this.first);
  }

  /** Show which messages the model no longer reads. */
  drop(first) {
    this.first = first;
    this.thread.querySelector(".dropped-line")?.remove();
    for (const node of this.thread.querySelectorAll(".message"))
      node.toggleAttribute("data-dropped", Number(node.dataset.place) < first);
    if (first > 0)
      this.node(first)?.before(h("p", { class: "dropped-line" }, "Above this line: no longer read by the model"));
  }

  // Asking and answering

  /**
   * Where the system text and what is remembered (`note`) go, by the rule of the terminal: { head, above }. The
   * note stands below the system text, or the template's own; above the last message where that takes none.
   */
  told(note = "") {
    const own = store.settings.system.trim();
    const base = own || (note && this.model.default_system);
    if (base === null) return { head: [], above: note };
    const system = [base, note].filter(Boolean).join("\n\n");
    return { head: system ? [{ role: "system", content: system }] : [], above: "" };
  }

  async count() {
    const { model, writing } = this;
    if (!model || writing) return;
    const draft = this.input.value.trim();
    const said = plainly(this.conversation.messages);
    if (draft) said.push({ role: "user", content: draft });
    this.counting?.abort();
    this.counting = new AbortController();
    try {
      const room = roomFor(model, store.settings.maxTokens);
      const note = this.conversation.messages.findLast((message) => message.role === "user")?.note;
      const { head, above } = this.told(note);
      const kept = await fitting(model, head, withNote(above, said), room, this.counting.signal);
      this.meter.show(kept, said.length);
      this.drop(Math.min(kept.first, this.conversation.messages.length));
    } catch (error) {
      if (error.name !== "AbortError") this.meter.hide();
    }
  }

  /** Say `text` as message `place`, instead of everything that stood from there on. */
  async ask(text, place) {
    const before = structuredClone(this.conversation.messages);
    const message = { role: "user", text };
    const prepare = async () => {
      const { note, facts, kept, not_kept: notKept } = await recall(text);
      if (note) Object.assign(message, { note, facts: facts.map((fact) => fact.text) });
      if (kept) message.kept = kept.id;
      if (notKept) message.notKept = notKept;
    };
    this.conversation.messages.splice(place, Infinity, message);
    this.render();
    this.bottom(true);
    const came = await this.answer(place, { before, prepare });
    if (came || this.input.value) return;
    this.input.value = text; // to be said again, perhaps differently
    this.input.dispatchEvent(new Event("input"));
  }

  again(place) {
    return this.answer(place - 1);
  }

  branch(place, token, other) {
    const before = structuredClone(this.conversation.messages);
    const { versions, shown } = this.conversation.messages[place];
    const way = branch(versions[shown], token, other, this.node(place).written.starts);
    this.conversation.messages.splice(place + 1);
    return this.answer(place - 1, { before, ...way });
  }

  /** What was said before message `place`, as the API wants it. */
  plainly(place) {
    return plainly(this.conversation.messages.slice(0, place));
  }

  /** What going another way from message `place` would cost. */
  lost(place) {
    const after = this.conversation.messages.length - place - 1;
    return after ? `Replaces the ${count(after, "message")} below it.` : "";
  }

  goOn(place) {
    const { versions, shown } = this.conversation.messages[place];
    const { text, tokens } = versions[shown];
    const prefix = tokens.map(({ id }) => id);
    return this.answer(place - 1, { version: { text, tokens: [...tokens] }, prefix });
  }

  /**
   * Write an answer to the message at `place`: a new version of the one it has, or its first.
   *
   * `prepare` is waited for first; `version` is what the answer begins with, of the tokens `prefix`. Where
   * nothing came, the conversation is again what it was `before`, and the result is false.
   */
  async answer(place, { before, prepare, version = { text: "", tokens: [] }, prefix = [] } = {}) {
    if (this.writing || !this.model) return false;
    const { conversation, model } = this;
    const { messages } = conversation;
    const old = before ?? structuredClone(messages);
    const controller = new AbortController();
    this.writing = controller;
    this.ready();
    showError("");
    const body = { ...sampling(model), ...CHAT.fields, stream_options: { include_usage: true } };
    if (prefix.length) body.prefix_tokens = prefix;
    Object.assign(version, { model: model.name, seed: body.seed, finish: null });
    let came = false;
    try {
      await prepare?.();
      this.keep(conversation); // so that a reload in between loses no question
      const { head, above } = this.told(messages[place].note);
      const asked = withNote(above, plainly(messages.slice(0, place + 1)));
      const kept = await fitting(model, head, asked, body.max_tokens, controller.signal);
      // The tokens it begins with come on top, as far as the model's length allows.
      body.max_tokens = Math.min(body.max_tokens, kept.limit - kept.nTokens - prefix.length);
      if (!kept.fits || body.max_tokens < 1) throw new Error(tooLong(kept));
      body.messages = [...head, ...asked.slice(kept.first)];
      version.asked = { model: model.id, head, above, first: kept.first }; // for a look inside
      const answer = messages[place + 1] ?? { role: "assistant", versions: [] };
      answer.versions.push(version);
      answer.shown = answer.versions.length - 1;
      messages[place + 1] = answer;
      this.meter.show(kept, place + 1);
      const show = this.painter(conversation, place + 1, version, kept.first);
      const changed = () => ((came = true), show());
      await stream("/v1/chat/completions", body, version, CHAT, changed, controller.signal);
      announce("The answer is complete.");
    } catch (error) {
      version.finish = error.name === "AbortError" ? "stopped" : "error";
      if (error.name !== "AbortError") showError(error.message);
    }
    this.writing = null;
    if (!came) messages.splice(0, Infinity, ...old);
    this.keep(conversation);
    if (this.conversation === conversation) this.render();
    this.ready();
    this.recount();
    return came;
  }

  /** Show an answer that is being written; gives a function that shows what it has become, once a frame. */
  painter(conversation, place, version, first) {
    this.render();
    this.drop(first);
    const node = this.node(place);
    node.setAttribute("data-writing", "");
    this.bottom(true);
    let wanted = false;
    return () => {
      if (wanted) return;
      wanted = true;
      requestAnimationFrame(() => {
        wanted = false;
        const follow = this.atBottom();
        node.written.update(version.text, version.tokens);
        if (follow && this.conversation === conversation) this.bottom();
      });
    };
  }

  atBottom() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    return scrollHeight - scrollTop - clientHeight < 80;
  }

  bottom(always = false) {
    if (always || this.atBottom()) this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  /** Let the user say message `place` differently, where it stands. */
  edit(place) {
    if (this.writing) return;
    const { messages } = this.conversation;
    const area = h("textarea", { class: "say", "aria-label": "Your message, to be changed", rows: 1 });
    area.value = messages[place].text;
    growing(area);
    const back = () => (this.replace(place), this.input.focus());
    const done = () => {
      const text = area.value.trim();
      if (text) this.ask(text, place);
    };
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !composing(event)) (event.stopPropagation(), back());
      if (event.key === "Enter" && !event.shiftKey && !composing(event)) (event.preventDefault(), done());
    });
    this.node(place).querySelector(".body").replaceChildren(
      h("div", { class: "sheet editing" }, area),
      h("div", { class: "actions shown" },
        h("button", { class: "button primary", onclick: done }, "Send"),
        h("button", { class: "button", onclick: back }, "Cancel"),
        h("span", { class: "quiet" }, this.lost(place))));
    area.focus();
  }
}
