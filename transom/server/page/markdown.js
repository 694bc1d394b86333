// A small part of Markdown, as nodes: headings, lists, quotes, code, rules, emphasis, links.
//
// Every piece of text keeps its place in the source (start, end), so that the tokens it was written in stay
// clickable. There is no raw HTML, an image is a link to it, and a link leads to http(s) only. Whatever is none of this
// stays the text it is.

import { h } from "./dom.js";

const FENCE = /^ {0,3}(```+|~~~+)\s*([\w+#.-]*)[^\n]*$/;
const HEADING = /^(#{1,6})[ \t]+(?=\S)/;
const BULLET = /^([ \t]*)([-*+])[ \t]+(?=\S)/;
const NUMBER = /^([ \t]*)(\d{1,9})[.)][ \t]+(?=\S)/;
const QUOTE = /^ {0,3}> ?/;
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
      const fence = match[1];
      at++;
      while (at < lines.length && !lines[at].text.trimStart().startsWith(fence)) at++;
      const body = lines.slice(from + 1, at);
      const start = body.length ? body[0].start : line.end;
      const end = body.length ? body[body.length - 1].end : start;
      at++; // the closing fence, or the end of an answer that is still being written
      found.push({ kind: "code", language: match[2], from: start, to: end });
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

const begins = (line) =>
  FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || BULLET.test(line) || NUMBER.test(line);

/** One block as a node; `leaf(parent, from, to)` writes a piece of the source text. */
export function blockNode(text, block, leaf) {
  const inline = (parent, from, to) => (inlines(parent, text, from, to, leaf), parent);
  switch (block.kind) {
    case "code": {
      const code = h("code", {});
      leaf(code, block.from, block.to);
      const label = block.language ? { "data-language": block.language } : {};
      return h("pre", { ...label, tabindex: "0", "aria-label": `Code ${block.language}`.trim() }, code);
    }
    case "heading":
      return inline(h(`h${Math.min(6, block.level + 2)}`, {}), block.from, block.to);
    case "rule":
      return h("hr", {});
    case "quote": {
      const quote = h("blockquote", {});
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
        const words = inline(h("span", {}), item.from, item.to);
        list.append(
          h("div", { class: "item", role: "listitem", "data-depth": item.depth },
            h("span", { class: "item-mark" }, mark), words),
        );
      }
      return list;
    }
    default:
      return inline(h("p", {}), block.from, block.to);
  }
}

const INLINE = new RegExp(
  [
    /(?<escape>\\[\\`*_[\]()#+.!>~-])/,
    /(?<code>`+)(?<coded>[^`][^]*?)\k<code>(?!`)/,
    /(?<strong>\*\*|__)(?=\S)(?<stronged>[^]+?\S|\S)\k<strong>/,
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
    if (groups.escape) inside = [index + 1, index + 2];
    else if (groups.code) [node, inside] = [h("code", {}), within(index, groups.code, groups.coded)];
    else if (groups.strong) [node, inside] = [h("strong", {}), within(index, groups.strong, groups.stronged)];
    else if (groups.em) [node, inside] = [h("em", {}), within(index, groups.em, groups.emed)];
    else {
      node = link(groups.bare ?? groups.target);
      if (!node) continue; // leads elsewhere than to the web: it stays the text it is
      if (groups.label) inside = within(index, match[0].startsWith("!") ? "![" : "[", groups.label);
    }
    if (index > done) leaf(parent, from + done, from + index);
    const target = node ?? parent;
    if (node && !groups.code && !groups.bare)
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
