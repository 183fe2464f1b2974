"use strict";
// What all pages share. Text is only ever set as text; data comes as script files of this folder.
const esl = { held: new Map() };

esl.load = function (name) {
  if (!esl.held.has(name)) {
    const entry = {};
    entry.promise = new Promise((resolve, reject) => { entry.resolve = resolve; entry.reject = reject; });
    esl.held.set(name, entry);
    const script = document.createElement("script");
    script.src = "data/" + name + ".js";
    script.onload = () => entry.reject(new Error(name));  // does nothing where the file gave what it holds
    script.onerror = () => entry.reject(new Error(name));
    document.head.append(script);
  }
  return esl.held.get(name).promise;
};

esl.give = function (name, value) { esl.held.get(name)?.resolve(value); };

esl.el = function (tag, attributes, ...children) {
  const found = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "on") for (const [event, handler] of Object.entries(value)) found.addEventListener(event, handler);
    else if (value !== null && value !== undefined) found.setAttribute(name, value);
  }
  found.append(...children.filter((child) => child !== null && child !== undefined));
  return found;
};

esl.svg = function (tag, attributes, text) {
  const found = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
  if (text !== undefined) found.textContent = text;
  return found;
};

// A token as a chip, its stand-in for a space faint; it runs in its own direction.
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

esl.layer = function (place) {
  const layer = META.layers[place];
  return layer < 0 ? "the embedding" : "block " + layer;
};

// Three figures, as a column of numbers wants them.
esl.figures = (x) => x.toFixed(Math.abs(x) >= 99.95 ? 0 : Math.abs(x) >= 9.995 ? 1 : 2).replace("-", "−");

esl.wait = (message, error) => esl.el("p", { class: "quiet" }, message + " " + error.message + ".js could not be read.");

esl.typing = () => /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName || "");

document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !esl.typing() && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    document.getElementById("q").focus();
    document.getElementById("q").select();
  }
});

document.getElementById("find").addEventListener("submit", (event) => {
  event.preventDefault();
  const asked = document.getElementById("q").value.trim();
  if (/^\d+$/.test(asked) && Number(asked) < META.n) location.href = "factor.html#" + Number(asked);
  else if (!document.getElementById("rows")) location.href = "index.html#q=" + encodeURIComponent(asked);
  else document.querySelector("#rows a")?.focus();
});
