// A small part of Markdown, as nodes: headings, lists, tables, quotes, code, rules, emphasis, links; math as it is written,
// since drawn as MathML a command of several tokens would be one sign, or a mere place, and a token none.
//
// Every piece of text keeps its place in the source (start, end), so that the tokens it was written in stay
// clickable. There is no raw HTML, an image is a link to it, and a link leads to http(s) only. Whatever is none of this
// stays the text it is.

import { action, copy, h } from "./dom.js";

const FENCE = /^([ \t]*)(```+|~~~+)\s*([\w+#.-]*)[^\n`]*$/;
const HEADING = /^(#{1,6})[ \t]+(?=\S)/;
const BULLET = /^([ \t]*)([-*+])[ \t]+(?=\S)/;
const NUMBER = /^([ \t]*)(\d{1,9})[.)][ \t]+(?=\S)/;
const QUOTE = /^ {0,3}> ?/;
const TABLE = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)+\|?[ \t]*$|^ {0,3}\|[ \t]*:?-+:?[ \t]*\|?[ \t]*$/;
const MATH = /^ {0,3}(\\\[|\$\$)/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;

/** The blocks of a text in order: { kind, start, end, ... }, places counted in the whole text. */
export function blocks(text) {
  const lines = [];
  for (let start = 0; start <= text.length; ) {
    const stop = text.indexOf("\n", start);
    const end = stop < 0 ? text.length : stop;
    lines.push({ start, end, text: text.slice(start, end) });
    start = end + 1;
  }
  const found = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    const from = at;
    let match;
    if (!line.text.trim()) {
      at++;
      continue;
    }
    if ((match = FENCE.exec(line.text))) {
      const [, indent, fence, language] = match;
      at++;
      while (at < lines.length && !lines[at].text.trimStart().startsWith(fence)) at++;
      // What the fence is indented by, under an item of a list, is no part of the code.
      const inner = lines.slice(from + 1, at).map(({ start, end, text }) => {
        const spaces = Math.min(indent.length, text.length - text.trimStart().length);
        return { from: start + spaces, to: end };
      });
      at++; // the closing fence, or the end of an answer that is still being written
      found.push({ kind: "code", language, lines: inner });
    } else if ((match = MATH.exec(line.text))) {
      const closes = match[1] === "$$" ? "$$" : "\\]";
      const opened = line.text.indexOf(match[1]) + match[1].length;
      while (at < lines.length && !lines[at].text.slice(at === from ? opened : 0).includes(closes)) at++;
      at = Math.min(at + 1, lines.length);
      found.push({ kind: "math", from: line.start, to: lines[at - 1].end });
    } else if (line.text.includes("|") && TABLE.test(lines[at + 1]?.text ?? "")) {
      const aligned = cells(lines[at + 1]).map(({ from, to }) => text.slice(from, to)).map((mark) => (mark.endsWith(":") ? (mark.startsWith(":") ? "center" : "end") : null));
      const rows = [cells(line)];
      for (at += 2; at < lines.length && lines[at].text.includes("|"); at++) rows.push(cells(lines[at]));
      found.push({ kind: "table", rows, aligned });
    } else if ((match = HEADING.exec(line.text))) {
      found.push({ kind: "heading", level: match[1].length, from: line.start + match[0].length, to: line.end });
      at++;
    } else if (RULE.test(line.text)) {
      found.push({ kind: "rule" });
      at++;
    } else if (QUOTE.test(line.text)) {
      const quoted = [];
      while (at < lines.length && QUOTE.test(lines[at].text)) {
        quoted.push({ from: lines[at].start + QUOTE.exec(lines[at].text)[0].length, to: lines[at].end });
        at++;
      }
      found.push({ kind: "quote", lines: quoted });
    } else if (BULLET.test(line.text) || NUMBER.test(line.text)) {
      const ordered = NUMBER.test(line.text);
      const rule = ordered ? NUMBER : BULLET;
      const items = [];
      while (at < lines.length) {
        const item = BULLET.exec(lines[at].text) ?? NUMBER.exec(lines[at].text);
        if (!item) {
          if (FENCE.test(lines[at].text)) break; // code of the item stands below it
          if (!lines[at].text.trim() || !/^\s/.test(lines[at].text)) break;
          items[items.length - 1].to = lines[at].end; // an indented line goes on with the item
        } else {
          const depth = Math.min(3, Math.floor(item[1].replace(/\t/g, "  ").length / 2));
          if (depth === 0 && !rule.test(lines[at].text)) break; // the other kind of list begins
          items.push({ depth, mark: item[2], from: lines[at].start + item[0].length, to: lines[at].end });
        }
        at++;
      }
      found.push({ kind: "list", ordered, items });
    } else {
      at++;
      while (at < lines.length && lines[at].text.trim() && !begins(lines[at].text)) at++;
      found.push({ kind: "text", from: line.start, to: lines[at - 1].end });
    }
    const last = lines[Math.min(at, lines.length) - 1];
    Object.assign(found[found.length - 1], { start: line.start, end: last.end });
  }
  return found;
}

/** The cells of a line of a table, without the spaces around them. */
function cells({ start, text }) {
  const found = [];
  const bar = /(?<!\\)\|/g;
  const edges = [-1, ...[...text.matchAll(bar)].map(({ index }) => index), text.length];
  for (let i = 0; i + 1 < edges.length; i++) {
    const cell = text.slice(edges[i] + 1, edges[i + 1]);
    const outside = (i === 0 || i + 2 === edges.length) && !cell.trim();
    if (outside) continue;
    const from = start + edges[i] + 1 + (cell.length - cell.trimStart().length);
    found.push({ from, to: Math.max(from, from + cell.trim().length) });
  }
  return found;
}

const begins = (line) =>
  MATH.test(line) || FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || BULLET.test(line) || NUMBER.test(line);

/** One block as a node; `leaf(parent, from, to)` writes a piece of the source text. */
export function blockNode(text, block, leaf) {
  const inline = (parent, from, to) => (inlines(parent, text, from, to, leaf), parent);
  switch (block.kind) {
    case "code": {
      const code = h("code", {});
      block.lines.forEach(({ from, to }, i) => (i && code.append("\n"), leaf(code, from, to)));
      const whole = () => block.lines.map(({ from, to }) => text.slice(from, to)).join("\n");
      return h("div", { class: "code" },
        h("div", { class: "code-head" }, h("span", {}, block.language || "code"), action("Copy", (event) => (event.stopPropagation(), copy(whole(), event.target)), { "aria-label": "Copy the code" })),
        h("pre", { dir: "ltr", tabindex: "0", "aria-label": `Code ${block.language}`.trim() }, code));
    }
    case "math": {
      const math = h("code", { class: "math" });
      leaf(math, block.from, block.to);
      return h("pre", { dir: "ltr", tabindex: "0", "aria-label": "Formula" }, math);
    }
    case "table": {
      const [head, ...rows] = block.rows;
      const row = (cell, of) => h("tr", {}, head.map((_, i) => (of[i] ? inline(h(cell, { dir: "auto", "data-align": block.aligned[i] }), of[i].from, of[i].to) : h(cell, {}))));
      return h("div", { class: "table", tabindex: "0", role: "group", "aria-label": "Table" },
        h("table", {}, h("thead", {}, row("th", head)), h("tbody", {}, rows.map((of) => row("td", of)))));
    }
    case "heading":
      return inline(h(`h${Math.min(6, block.level + 2)}`, { dir: "auto" }), block.from, block.to);
    case "rule":
      return h("hr", {});
    case "quote": {
      const quote = h("blockquote", { dir: "auto" });
      block.lines.forEach((line, i) => {
        if (i) quote.append("\n");
        inline(quote, line.from, line.to);
      });
      return quote;
    }
    case "list": {
      const list = h("div", { class: "list", role: "list" });
      for (const item of block.items) {
        const mark = /\d/.test(item.mark) ? `${item.mark}.` : "–";
        const task = /^\[([ xX])\][ \t]+/.exec(text.slice(item.from, item.to));
        const words = inline(h("span", {}), item.from + (task?.[0].length ?? 0), item.to);
        list.append(
          h("div", { class: "item", dir: "auto", role: "listitem", "data-depth": item.depth },
            h("span", { class: "item-mark" }, task ? (task[1] === " " ? "☐" : "☑") : mark), words),
        );
      }
      return list;
    }
    default:
      return inline(h("p", { dir: "auto" }), block.from, block.to);
  }
}

const INLINE = new RegExp(
  [
    /(?<math>\\\([^\n]+?\\\)|\\\[[^\n]+?\\\]|\$\$[^\n]+?\$\$)/,
    /(?<escape>\\[\\`*_[\]()#+.!>~|-])/,
    /(?<code>`+)(?<coded>[^`][^]*?)\k<code>(?!`)/,
    /(?<strong>\*\*|__)(?=\S)(?<stronged>[^]+?\S|\S)\k<strong>/,
    /(?<struck>~~)(?=\S)(?<through>[^]+?\S|\S)~~/,
    /(?<![\w*])(?<em>[*_])(?=[^\s*_])(?<emed>[^]*?[^\s*_]|[^\s*_])\k<em>(?![\w*])/,
    /!?\[(?<label>[^\]\n]{1,500})\]\((?<target>(?:[^\s()<>]|\([^\s()<>]{0,200}\)){1,2000})\)/,
    /(?<bare>\bhttps?:\/\/[^\s<>"'`)\]]{1,2000}[^\s<>"'`)\].,;:!?])/,
  ].map((part) => part.source).join("|"),
  "gu",
);

function inlines(parent, text, from, to, leaf, depth = 0) {
  const part = text.slice(from, to);
  const rule = new RegExp(INLINE); // its own place, since this calls itself
  let done = 0;
  for (let match; depth < 6 && (match = rule.exec(part)); ) {
    const { groups, index } = match;
    const whole = match[0].length;
    let node = null;
    let inside = [index, index + whole];
    if (groups.math) node = h("code", { class: "math", dir: "ltr" });
    else if (groups.escape) inside = [index + 1, index + 2];
    else if (groups.code) [node, inside] = [h("code", {}), within(index, groups.code, groups.coded)];
    else if (groups.strong) [node, inside] = [h("strong", {}), within(index, groups.strong, groups.stronged)];
    else if (groups.struck) [node, inside] = [h("s", {}), within(index, groups.struck, groups.through)];
    else if (groups.em) [node, inside] = [h("em", {}), within(index, groups.em, groups.emed)];
    else {
      node = link(groups.bare ?? groups.target);
      if (!node) continue; // leads elsewhere than to the web: it stays the text it is
      if (groups.label) inside = within(index, match[0].startsWith("!") ? "![" : "[", groups.label);
    }
    if (index > done) leaf(parent, from + done, from + index);
    const target = node ?? parent;
    if (node && !groups.code && !groups.bare && !groups.math)
      inlines(target, text, from + inside[0], from + inside[1], leaf, depth + 1);
    else leaf(target, from + inside[0], from + inside[1]);
    if (node) parent.append(node);
    done = index + whole;
  }
  if (done < part.length) leaf(parent, from + done, to);
}

const within = (index, mark, inside) => [index + mark.length, index + mark.length + inside.length];

/** A link out of the page, or null where it would lead anywhere but to the web. */
function link(target) {
  let url;
  try {
    url = new URL(target);
  } catch {
    return null;
  }
  if (url.protocol !== "http:" && url.protocol !== "https:") return null;
  return h("a", { href: url.href, rel: "noopener noreferrer nofollow", target: "_blank" });
}
