// Building and updating nodes. Text goes in as text only: nothing here or elsewhere parses markup, so a file name, a
// reason or a model's answer can never become an element.

// Controls, line separators, bidirectional overrides and lone surrogates: invisible, or able to turn the text around.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]|\p{Surrogate}/gu;

/** Spell characters that cannot be seen, so that two different names never look the same. */
export function visible(value) {
  return String(value ?? "").replace(HIDDEN, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/**
 * Make an element. `about` may hold `class`, `text`, `title`, `on` ({click: fn}), `data` ({key: value}); anything else is set
 * as an attribute. Values null and undefined are left out.
 */
export function h(tag, about = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(about)) {
    if (value === null || value === undefined) continue;
    if (key === "text") node.textContent = visible(value);
    else if (key === "class") node.className = value;
    else if (key === "on") for (const [name, run] of Object.entries(value)) node.addEventListener(name, run);
    else if (key === "data") Object.assign(node.dataset, value);
    else node.setAttribute(key, key === "title" ? visible(value) : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Change a node's text only when it differs, so that a selection and the layout survive a poll. */
export function setText(node, value) {
  const text = visible(value);
  if (node.textContent !== text) node.textContent = text;
}

/** Find an element of the page. */
export function $(id) {
  return document.getElementById(id);
}

const shown = new WeakMap();

/**
 * Bring a list up to date: items keep their node while their content is the same, so focus, selection and scroll stay.
 * `key(item)` names an item, `build(item)` makes its node.
 */
export function keyed(parent, items, key, build) {
  const before = shown.get(parent) ?? new Map();
  const after = new Map();
  let place = parent.firstChild;
  for (const item of items) {
    const name = key(item);
    const content = JSON.stringify(item);
    const old = before.get(name);
    const node = old?.content === content ? old.node : build(item);
    if (old && old.node !== node) {
      if (place === old.node) place = place.nextSibling;
      keepFocus(old.node, node);
      old.node.replaceWith(node);
    }
    if (node !== place) parent.insertBefore(node, place);
    else place = place.nextSibling;
    after.set(name, { content, node });
  }
  while (place) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
  shown.set(parent, after);
}

function keepFocus(old, fresh) {
  if (!old.contains(document.activeElement)) return;
  const places = [...old.querySelectorAll("a, button")];
  const position = places.indexOf(document.activeElement);
  queueMicrotask(() => [...fresh.querySelectorAll("a, button")][position]?.focus({ preventScroll: true }));
}

/** Show a line instead of an empty list. */
export function emptyNote(node, isEmpty, text) {
  node.hidden = !isEmpty;
  if (isEmpty) setText(node, text);
}

/** Fill a <dl> with [term, value, title?] triples; a value may be a node. */
export function facts(list, pairs) {
  keyed(list, pairs.map(([term, value, title]) => ({ term, value: value instanceof Node ? value.outerHTML : value, title })),
    (item) => item.term,
    (item) => {
      const pair = pairs.find(([term]) => term === item.term);
      const value = h("dd", { title: pair[2] });
      if (pair[1] instanceof Node) value.append(pair[1]);
      else value.textContent = visible(pair[1]);
      return h("div", {}, h("dt", { text: item.term }), value);
    });
}

/** A command that a click copies. */
export function command(text) {
  const button = h("button", { type: "button", class: "copy", "aria-label": `Copy: ${text}`, text: "copy" });
  const line = h("code", { text });
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(line); // no clipboard outside localhost and https: select it instead
      button.textContent = "selected";
    }
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
  return h("div", { class: "command" }, line, button);
}
