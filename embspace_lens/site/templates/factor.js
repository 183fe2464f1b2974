"use strict";
// One factor: factor.html#601 or, with a layer chosen, factor.html#601/3.
(function () {
  const FIRST = 50;
  const place = document.getElementById("factor");
  let factor = 0, layer = 0, head = null, turn = 0;

  const href = (f, l) => "factor.html#" + f + (l === undefined ? "" : "/" + l);
  const strengths = (scores) => { const best = Math.max(...scores.map(Math.abs), 1e-12); return scores.map((s) => Math.sign(s) * Math.abs(s / best) ** 3); };
  const figures = (x) => String(x).replace("-", "−");

  function sentence() {
    const parts = [];
    if (head.level) parts.push({ word: "A word: ", pattern: "A pattern: ", "long range": "Long range: " }[head.level]);
    if (head.peak < 0) return esl.el("p", { class: "sentence" }, "No text was read for this site.");
    const n = head.n[head.peak];
    parts.push((parts.length ? "peaks" : "Peaks") + " after " + esl.layer(head.peak) + (n ? "; " : "."));
    const found = esl.el("p", { class: "sentence" }, ...parts);
    if (n) {
      const [word, count] = head.words[head.peak][0];
      found.append(Math.round((100 * count) / n) + " % of its " + n + " strongest targets there are ", esl.chip(word, 0.5), ".");
    } else if (!Math.max(...head.curve)) return esl.el("p", { class: "sentence" }, "Dead: its code is 0 in all texts that were read.");
    if (head.reach !== undefined && head.reach !== null) found.append(head.reach < 0.05 ? " The target itself decides its code." : ` The tokens that decide its code lie ${head.reach.toFixed(1)} places from the target on average.`);
    return found;
  }

  function curve() {
    const width = 400, height = 150, left = 44, right = 14, top = 16, bottom = 34;
    const most = Math.max(...head.curve) || 1, n = head.curve.length;
    const x = (i) => (n > 1 ? left + ((width - left - right) * i) / (n - 1) : width / 2);
    const y = (v) => height - bottom - ((height - top - bottom) * v) / most;
    const said = "Importance by layer: " + head.curve.map((v, i) => esl.layer(i) + " " + v).join(", ");
    const svg = esl.svg("svg", { class: "curve", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": said });
    for (const v of [0, most]) {
      svg.append(esl.svg("line", { class: "axis", x1: left, x2: width - right, y1: y(v), y2: y(v) }));
      svg.append(esl.svg("text", { x: left - 7, y: y(v) + 4, "text-anchor": "end" }, String(Number(v.toPrecision(3)))));
    }
    svg.append(esl.svg("path", { class: "line", d: head.curve.map((v, i) => (i ? "L" : "M") + x(i).toFixed(1) + " " + y(v).toFixed(1)).join("") }));
    const every = Math.ceil(n / 14);
    head.curve.forEach((v, i) => {
      const dot = esl.svg("circle", { cx: x(i), cy: y(v), r: 4.2, class: i === layer ? "now" : "" });
      dot.append(esl.svg("title", {}, `after ${esl.layer(i)}: ${v}`));
      dot.addEventListener("click", () => choose(i));
      svg.append(dot);
      if (i % every === 0) svg.append(esl.svg("text", { x: x(i), y: height - bottom + 17, "text-anchor": "middle", class: i === layer ? "said" : "" }, META.layers[i] < 0 ? "emb" : String(META.layers[i])));
    });
    svg.append(esl.svg("text", { x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" }, "after block"));
    return svg;
  }

  function nearest() {
    const list = esl.el("dl", { class: "lines" });
    ["towards", "away"].forEach((label, side) => {
      const found = head.nearest[side] || [];
      const strong = strengths(found.map((chip) => chip[2]));
      const chips = found.map(([text, id, score], i) => esl.chip(text, strong[i], `${text}, id ${id}, score ${figures(score)}`));
      if (found.length) list.append(esl.el("dt", null, label), esl.el("dd", null, ...chips));
    });
    return list.children.length ? [esl.el("h2", null, "Nearest tokens in embedding space"), list] : [];
  }

  function neighbours() {
    const links = head.neighbours.map(([other, cosine]) => esl.el("a", { href: href(other) }, esl.el("b", null, String(other)), esl.el("small", null, " " + cosine.toFixed(2).replace("-", "−"))));
    return links.length ? [esl.el("h2", null, "Neighbours, by cosine"), esl.el("p", { class: "neighbours" }, ...links)] : [];
  }

  function side(tokens, most) {
    return tokens.map(([offset, text, value]) => {
      const share = value / most;
      const shown = text.replaceAll("␣", " ");
      const kind = "tok" + (share < -0.05 ? " minus" : "") + (share > 0.5 ? " strong" : "");
      return esl.el("span", { class: kind, style: "--s:" + Math.min(1, Math.abs(share)).toFixed(2), title: `saliency ${figures(value)}` }, shown);
    });
  }

  function line([code, before, target, after, example, pos, salient]) {
    const cell = (name, child) => esl.el("td", { class: name }, child);
    const others = (salient || []).filter((token) => token[0]);
    const most = Math.max(...(salient || []).map((token) => Math.abs(token[2])), 1e-12);
    const own = (salient || []).find((token) => token[0] === 0);
    const mark = esl.el("b", { class: own ? "tok" : null, style: own ? "--s:" + Math.max(0, own[2] / most).toFixed(2) : null, title: own ? `saliency ${figures(own[2])}` : null }, esl.token(target));
    const left = others.filter((token) => token[0] < 0), right = others.filter((token) => token[0] > 0);
    const lead = salient && left.length ? esl.el("bdi", null, ...side(left, most)) : esl.el("bdi", null, before);
    const tail = salient && right.length ? esl.el("bdi", null, ...side(right, most)) : esl.el("bdi", null, after);
    return esl.el("tr", { title: `text ${example}, token ${pos}` }, cell("code", esl.figures(code)), cell("before", esl.el("div", null, lead)), cell("target", mark), cell("after", tail));
  }

  async function contexts() {
    const mine = ++turn;
    const box = document.getElementById("contexts");
    let found;
    try {
      found = await esl.load("f/" + factor + "/" + layer);
    } catch (error) {
      if (mine === turn) box.replaceChildren(esl.wait("The contexts are missing:", error));
      return;
    }
    if (mine !== turn) return;
    const total = head.n[layer];
    const words = esl.el("ul", { class: "targets", "aria-label": "Commonest targets" }, ...head.words[layer].map(([word, count]) => esl.el("li", null, esl.chip(word, count / total), esl.el("small", null, " " + count))));
    const body = esl.el("tbody");
    const longest = Math.min(16, Math.max(3, ...found.map((row) => [...row[2]].length)));  // targets stand under one another
    const columns = esl.el("colgroup", null, ...["code", "before", "target", "after"].map((name) => esl.el("col", { class: name, style: name === "target" ? `width:${longest + 3}ch` : null })));
    const draw = (rows) => body.append(...rows.map(line));
    draw(found.slice(0, FIRST));
    const rest = found.length > FIRST ? esl.el("button", { class: "more", type: "button", on: { click: () => { draw(found.slice(FIRST)); rest.remove(); } } }, `Show all ${found.length}`) : null;
    const table = esl.el("table", { class: "kwic" }, esl.el("caption", { class: "unseen" }, "Strongest contexts after " + esl.layer(layer)), columns, body);
    const note = found.some((row) => row[6]) ? esl.el("p", { class: "quiet" }, "Where it was computed, the tint is saliency: what the code loses without the token. Bold: more than half of the strongest. Dashed: the code grows without it.") : null;
    box.replaceChildren(...(found.length ? [words, note, table, rest].filter(Boolean) : [esl.el("p", { class: "quiet" }, "No text made it active after " + esl.layer(layer) + ".")]));
    document.body.dataset.ready = factor + "/" + layer;
  }

  function picks() {
    return META.layers.map((number, i) => esl.el("button", { type: "button", "aria-pressed": String(i === layer), "data-layer": i, on: { click: () => choose(i) } }, number < 0 ? "embedding" : String(number)));
  }

  function choose(i) {
    if (!document.querySelector(".curve")) return;  // no text was read, or there is no such factor
    const held = document.activeElement?.dataset?.layer !== undefined;
    layer = Math.max(0, Math.min(META.layers.length - 1, i));
    history.replaceState(null, "", href(factor, layer));
    document.querySelector(".curve").replaceWith(curve());
    document.getElementById("layers").replaceChildren(...picks());
    if (held) document.querySelector(`[data-layer="${layer}"]`).focus();
    contexts();
  }

  function show() {
    document.title = "Factor " + factor + ", " + META.name;
    const link = (f, text) => esl.el("a", { href: href(f) }, text);
    const near = nearest();
    const parts = [
      esl.el("div", { class: "top" }, esl.el("h1", null, "Factor " + factor), esl.el("nav", { "aria-label": "Factors" }, factor > 0 ? link(factor - 1, "← " + (factor - 1)) : null, factor + 1 < META.n ? link(factor + 1, factor + 1 + " →") : null)),
      sentence(),
    ];
    if (META.layers.length) {
      parts.push(esl.el("div", { class: "pair" }, esl.el("section", null, esl.el("h2", null, "Importance over layers"), curve()), esl.el("section", null, ...near, ...neighbours())));
      parts.push(esl.el("h2", null, "Strongest contexts"), esl.el("div", { class: "controls" }, esl.el("span", { class: "quiet" }, "after block"), esl.el("div", { id: "layers", class: "picks", role: "group", "aria-label": "After which block" }, ...picks())));
      parts.push(esl.el("div", { id: "contexts" }, esl.el("p", { class: "quiet" }, "Loading …")));
    } else parts.push(...near, ...neighbours());
    place.replaceChildren(...parts);
    if (META.layers.length) contexts();
    else document.body.dataset.ready = String(factor);
  }

  async function read() {
    const [number, chosen] = location.hash.slice(1).split("/");
    const mine = ++turn;  // what is still under way comes too late
    factor = Number(number || 0);
    if (!Number.isInteger(factor) || factor < 0 || factor >= META.n) {
      place.replaceChildren(esl.el("h1", null, "There is no factor " + number), esl.el("p", null, "They go from 0 to " + (META.n - 1) + "."));
      return;
    }
    try {
      const found = await esl.load("f/" + factor + "/head");
      if (mine !== turn) return;
      head = found;
    } catch (error) {
      place.replaceChildren(esl.wait("Factor " + factor + " is missing:", error));
      return;
    }
    layer = chosen !== undefined && META.layers[Number(chosen)] !== undefined ? Number(chosen) : Math.max(0, head.peak);
    show();
    scrollTo(0, 0);
  }

  document.addEventListener("keydown", (event) => {
    if (esl.typing() || event.ctrlKey || event.metaKey || event.altKey || !head) return;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step && factor + step >= 0 && factor + step < META.n) location.hash = String(factor + step);
    if (event.key === "[") choose(layer - 1);
    if (event.key === "]") choose(layer + 1);
  });
  addEventListener("hashchange", read);
  read();
})();
