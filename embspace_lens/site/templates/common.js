"use strict";
// Shared by all pages. Text is always inserted as text nodes, never as HTML. Data files are scripts in this folder.
const esl = { loaded: new Map() };

esl.load = function (name) {
  if (!esl.loaded.has(name)) {
    const entry = {};
    entry.promise = new Promise((resolve, reject) => { entry.resolve = resolve; entry.reject = reject; });
    esl.loaded.set(name, entry);
    const script = document.createElement("script");
    script.src = "data/" + name + ".js";
    script.onload = () => entry.reject(new Error(name));  // no effect if the file called esl.give
    script.onerror = () => entry.reject(new Error(name));
    document.head.append(script);
  }
  return esl.loaded.get(name).promise;
};

esl.give = function (name, value) { esl.loaded.get(name)?.resolve(value); };

esl.el = function (tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "on") for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
};

esl.svg = function (tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
};

// The text of a token. Symbols for spaces are faint; <bdi> isolates right-to-left text.
esl.token = function (text) {
  const inner = esl.el("bdi");
  for (const part of text.split(/([␣⏎⇥])/)) {
    if (/^[␣⏎⇥]$/.test(part)) inner.append(esl.el("span", { class: "esl-sign" }, part));
    else if (part) inner.append(part);
  }
  return inner;
};

esl.chip = function (text, strength, title) {
  const negative = strength < 0 ? " esl-negative" : "";
  const style = "--s:" + Math.min(1, Math.abs(strength)).toFixed(2);
  return esl.el("span", { class: "esl-chip" + negative, style, title }, esl.token(text));
};

// The name of a layer by its index.
esl.layer = function (index) {
  const layer = META.layers[index];
  return layer < 0 ? "the embedding" : "block " + layer;
};

// Three significant figures.
esl.figures = (x) => x.toFixed(Math.abs(x) >= 99.95 ? 0 : Math.abs(x) >= 9.995 ? 1 : 2).replace("-", "−");

esl.failed = (message, error) => esl.el("p", { class: "quiet" }, message + " " + error.message + ".js could not be read.");

// A share in percent, of tokens on which a feature is active.
esl.percent = (x) => (x === 0 ? "dead" : Number(x.toPrecision(2)) + " %");

// What a page is called, and its address. Features are numbered through all dictionaries: [name, first, n, hook].
esl.dictionary = (f) => META.dictionaries.findLast(([, first]) => first <= f);
esl.number = (f) => String(META.dictionaries ? f - esl.dictionary(f)[1] : f);
esl.name = (f) => (META.dictionaries ? `${esl.dictionary(f)[0]} ${esl.number(f)}` : "Factor " + f);
esl.href = (f, layer) => META.page + "#" + f + (layer === undefined ? "" : "/" + layer);
esl.Noun = META.noun[0].toUpperCase() + META.noun.slice(1);

esl.isTyping = () => /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName || "");

document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !esl.isTyping() && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    document.getElementById("q").focus();
    document.getElementById("q").select();
  }
});

document.getElementById("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const query = document.getElementById("q").value.trim();
  const isNumber = /^\d+$/.test(query) && Number(query) < META.n;
  if (isNumber && (META.dictionaries || [0]).length < 2) location.href = esl.href(Number(query));
  else if (!document.getElementById("rows")) location.href = "index.html#q=" + encodeURIComponent(query);
  else document.querySelector("#rows a")?.focus();
});
