"use strict";
// The page of one factor: factor.html#601, or factor.html#601/3 with the index of a layer. Pages of features have further parts,
// in esl.feature.
(function () {
  const FIRST = 50;
  const box = document.getElementById("factor");
  let factor = 0, layer = 0, head = null, lastRequest = 0;

  const href = esl.href;
  const strengths = (scores) => { const best = Math.max(...scores.map(Math.abs), 1e-12); return scores.map((s) => Math.sign(s) * Math.abs(s / best) ** 3); };
  const figures = (x) => String(x).replace("-", "−");

  function summary() {
    const parts = [];
    if (esl.feature) return esl.feature.summary(head, factor);
    if (head.level) parts.push({ word: "Word factor", pattern: "Pattern factor", "long range": "Long-range factor", early: "Early factor", middle: "Middle factor", late: "Late factor" }[head.level] + ": ");
    if (head.peak < 0) return esl.el("p", { class: "sentence" }, "This site was made without texts.");
    parts.push((parts.length ? "its" : "Its") + " importance peaks after " + esl.layer(head.peak) + ". ");
    const sentence = esl.el("p", { class: "sentence" }, ...parts);
    if (head.strong) {
      const [word, percent, n, texts] = head.strong;
      sentence.append(n === 1 ? "Its one strong context there has the target " : `${percent} % of its ${n} strong contexts there (from ${texts} text${texts === 1 ? "" : "s"}) have the target `, esl.chip(word, 0.5), ".");
    } else if (!Math.max(...head.curve)) return esl.el("p", { class: "sentence" }, "Dead factor: its code is 0 in all texts.");
    if (head.reach !== undefined && head.reach !== null) sentence.append(head.reach < 0.05 ? " Only the target token is salient." : ` The salient tokens are ${head.reach.toFixed(1)} tokens from the target on average.`);
    return sentence;
  }

  function curve() {
    const width = 400, height = 150, left = 44, right = 14, top = 16, bottom = 34;
    const largest = Math.max(...head.curve) || 1, n = head.curve.length;
    const x = (i) => (n > 1 ? left + ((width - left - right) * i) / (n - 1) : width / 2);
    const y = (v) => height - bottom - ((height - top - bottom) * v) / largest;
    const label = "Importance by layer: " + head.curve.map((v, i) => esl.layer(i) + " " + v).join(", ");
    const svg = esl.svg("svg", { class: "curve", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
    for (const v of [0, largest]) {
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
      if (i % every === 0) svg.append(esl.svg("text", { x: x(i), y: height - bottom + 17, "text-anchor": "middle", class: i === layer ? "current" : "" }, META.layers[i] < 0 ? "emb" : String(META.layers[i])));
    });
    svg.append(esl.svg("text", { x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" }, "after block"));
    return svg;
  }

  // The codes above 0 after the chosen layer, in bins from x to √2·x.
  function histogram() {
    const bins = head.codes[layer] || [];
    if (!bins.length) return esl.el("p", { class: "quiet", id: "codes" }, "No code above 0" + after(layer) + ".");
    const width = 400, height = 130, left = 44, right = 14, top = 18, bottom = 34;
    const step = (code) => Math.round(2 * Math.log2(code));
    const first = step(bins[0][0]), last = step(bins[bins.length - 1][0]) + 1;
    const count = bins.reduce((sum, bin) => sum + bin[1], 0), most = Math.max(...bins.map((bin) => bin[1]));
    const x = (k) => left + ((width - left - right) * (k - first)) / (last - first);
    const label = `Codes${after(layer)}: ` + bins.map(([code, n]) => `${n} from ${code}`).join(", ");
    const svg = esl.svg("svg", { class: "curve codes", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
    const floor = height - bottom;
    svg.append(esl.svg("line", { class: "axis", x1: left, x2: width - right, y1: floor, y2: floor }));
    svg.append(esl.svg("text", { x: left - 7, y: top + 4, "text-anchor": "end" }, most.toLocaleString("en")), esl.svg("text", { x: left - 7, y: floor + 4, "text-anchor": "end" }, "0"));
    for (const [code, n] of bins) {
      const bar = esl.svg("rect", { x: x(step(code)) + 0.7, width: Math.max(1, x(step(code) + 1) - x(step(code)) - 1.4), y: floor - ((floor - top) * n) / most, height: ((floor - top) * n) / most });
      bar.append(esl.svg("title", {}, `${n.toLocaleString("en")} codes from ${code} to ${Number((code * Math.SQRT2).toPrecision(3))}`));
      svg.append(bar);
    }
    const every = 2 * Math.ceil((last - first) / 12);
    for (let k = Math.ceil(first / every) * every; k <= last; k += every) svg.append(esl.svg("text", { x: x(k), y: floor + 17, "text-anchor": "middle" }, String(Number((2 ** (k / 2)).toPrecision(2)))));
    svg.append(esl.svg("text", { x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" }, "code (logarithmic)"));
    const vectors = META.vectors[esl.feature ? META.dictionaries.indexOf(esl.dictionary(factor)) : layer];
    const share = vectors ? ` (${Number(((100 * count) / vectors).toPrecision(2))} %)` : "";
    const note = esl.el("p", { class: "quiet" }, `${count.toLocaleString("en")}${share} of the codes${after(layer)} are above 0.`);
    return esl.el("div", { id: "codes" }, svg, note);
  }

  const after = (i) => (esl.feature ? "" : " after " + esl.layer(i));

  // A neuron or head with the tokens that it writes; unfolded, the tokens that it reads and the other factors that it writes.
  function writer([name, cosine, written, read, others]) {
    const [, layer, expert, kind, index] = /^L(\d+)(?:E(\d+))?([NH])(\d+)$/.exec(name);
    const label = `${kind === "N" ? "neuron" : "head"} ${index} of ${expert === undefined ? "" : `expert ${expert} in `}layer ${layer}`;
    const chips = (tokens) => esl.el("span", { class: "chips" }, ...tokens.map((text, i) => esl.chip(text, i ? 0.25 : 0.6)));
    const links = (others || []).map((other) => esl.el("a", { href: href(other) }, String(other)));
    return esl.el("details", { class: "writer", id: name },
      esl.el("summary", null, esl.el("b", { title: label }, name), esl.el("small", null, cosine.toFixed(2).replace("-", "−")), chips(written)),
      esl.el("dl", { class: "lines" }, esl.el("dt", null, "reads"), esl.el("dd", null, chips(read)),
        ...(links.length ? [esl.el("dt", null, "factors"), esl.el("dd", { class: "others" }, ...links)] : [])));
  }

  esl.writer = writer;
  esl.strengths = strengths;

  function writers() {
    const parts = [["neuron", head.neurons || []], ["head", head.heads || []]];
    return parts.flatMap(([kind, list], i) => (list.length ? [
      esl.el("h2", null, kind[0].toUpperCase() + kind.slice(1) + "s that write it, by cosine"), esl.el("div", { class: "writers" }, ...list.map(writer)),
      META.chance.length ? esl.el("p", { class: "quiet" }, `For a random direction the best ${kind} has ${META.chance[i].toFixed(2)} on average.`) : ""] : []));
  }

  function nearest() {
    const list = esl.el("dl", { class: "lines" });
    ["highest", "lowest"].forEach((label, side) => {
      const nearest = head.nearest[side] || [];
      const strong = strengths(nearest.map((chip) => chip[2]));
      const chips = nearest.map(([text, id, score], i) => esl.chip(text, strong[i], `${text}, id ${id}, score ${figures(score)}`));
      if (nearest.length) list.append(esl.el("dt", null, label), esl.el("dd", null, ...chips));
    });
    return list.children.length ? [esl.el("h2", null, "Nearest tokens in embedding space, by score"), list] : [];
  }

  function neighbours() {
    const links = head.neighbours.map(([other, cosine, tokens]) => esl.el("a", { href: href(other) }, esl.el("b", null, esl.number(other)), ...(tokens || []).slice(0, 1).map((text) => esl.chip(text, 0.25)), esl.el("small", null, " " + cosine.toFixed(2).replace("-", "−"))));
    return links.length ? [esl.el("h2", null, esl.feature ? "Most similar features of the dictionary, by cosine of what they write" : "Most similar factors, by cosine"), esl.el("p", { class: "neighbours" }, ...links)] : [];
  }

  function tinted(tokens, largest) {
    return tokens.map(([offset, text, value]) => {
      const share = value / largest;
      const kind = "tok" + (share < -0.05 ? " minus" : "") + (share > 0.5 ? " strong" : "");
      return esl.el("span", { class: kind, style: "--s:" + Math.min(1, Math.abs(share)).toFixed(2), title: `saliency ${figures(value)}` }, text.replaceAll("␣", " "));
    });
  }

  function line([code, before, target, after, example, pos, salient]) {
    const cell = (name, child) => esl.el("td", { class: name }, child);
    const others = (salient || []).filter((token) => token[0]);
    const largest = Math.max(...(salient || []).map((token) => Math.abs(token[2])), 1e-12);
    const own = (salient || []).find((token) => token[0] === 0);
    const mark = esl.el("b", { class: own ? "tok" : null, style: own ? "--s:" + Math.max(0, own[2] / largest).toFixed(2) : null, title: own ? `saliency ${figures(own[2])}` : null }, esl.token(target));
    const left = others.filter((token) => token[0] < 0), right = others.filter((token) => token[0] > 0);
    const lead = salient && left.length ? esl.el("bdi", null, ...tinted(left, largest)) : esl.el("bdi", null, before);
    const tail = salient && right.length ? esl.el("bdi", null, ...tinted(right, largest)) : esl.el("bdi", null, after);
    return esl.el("tr", { title: `text ${example}, token ${pos}` }, cell("code", esl.figures(code)), cell("before", esl.el("div", null, lead)), cell("target", mark), cell("after", tail));
  }

  async function contexts() {
    const request = ++lastRequest;
    const list = document.getElementById("contexts");
    let rows;
    try {
      rows = await esl.load("f/" + factor + "/" + layer);
    } catch (error) {
      if (request === lastRequest) list.replaceChildren(esl.failed("The contexts cannot be shown:", error));
      return;
    }
    if (request !== lastRequest) return;
    const total = head.n[layer];
    const words = esl.el("ul", { class: "targets", "aria-label": "Most frequent targets" }, ...head.words[layer].map(([word, count]) => esl.el("li", null, esl.chip(word, count / total), esl.el("small", null, " " + count))));
    const body = esl.el("tbody");
    const longest = Math.min(16, Math.max(3, ...rows.map((row) => [...row[2]].length)));  // all targets in one column
    const columns = esl.el("colgroup", null, ...["code", "before", "target", "after"].map((name) => esl.el("col", { class: name, style: name === "target" ? `width:${longest + 3}ch` : null })));
    const draw = (part) => body.append(...part.map(line));
    draw(rows.slice(0, FIRST));
    const rest = rows.length > FIRST ? esl.el("button", { class: "more", type: "button", on: { click: () => { draw(rows.slice(FIRST)); rest.remove(); } } }, `Show all ${rows.length}`) : null;
    const table = esl.el("table", { class: "kwic" }, esl.el("caption", { class: "unseen" }, "Top contexts" + after(layer)), columns, body);
    const note = rows.some((row) => row[6]) ? esl.el("p", { class: "quiet" }, "The tint is saliency, where it was computed (LIME with " + META.samples + " variants): how much the code decreases when the token is replaced. Bold: more than half of the largest saliency. Dashed underline: the code increases.") : null;
    list.replaceChildren(...(rows.length ? [words, note, table, rest].filter(Boolean) : [esl.el("p", { class: "quiet" }, "The " + META.noun + " is not active" + after(layer) + ".")]));
    document.body.dataset.ready = factor + "/" + layer;
  }

  function picks() {
    return META.layers.map((number, i) => esl.el("button", { type: "button", "aria-pressed": String(i === layer), "data-layer": i, on: { click: () => choose(i) } }, number < 0 ? "embedding" : String(number)));
  }

  function choose(i) {
    if (!document.querySelector(".curve")) return;  // a site without texts, or no such factor
    const hasFocus = document.activeElement?.dataset?.layer !== undefined;
    layer = Math.max(0, Math.min(META.layers.length - 1, i));
    history.replaceState(null, "", href(factor, layer));
    document.querySelector(".curve").replaceWith(curve());
    document.getElementById("codes").replaceWith(histogram());
    document.getElementById("layers").replaceChildren(...picks());
    if (hasFocus) document.querySelector(`[data-layer="${layer}"]`).focus();
    contexts();
  }

  function show() {
    document.title = esl.name(factor) + ", " + META.name;
    const link = (f, text) => esl.el("a", { href: href(f) }, text);
    const nearestTokens = nearest();
    const parts = [
      esl.el("div", { class: "top" }, esl.el("h1", null, esl.name(factor)), esl.el("nav", { "aria-label": esl.Noun + "s" }, factor > 0 ? link(factor - 1, "← " + esl.number(factor - 1)) : null, factor + 1 < META.n ? link(factor + 1, esl.number(factor + 1) + " →") : null)),
      summary(),
    ];
    if (esl.feature) {
      parts.push(...esl.feature.sections(head, factor, META.layers.length ? [esl.el("h2", null, "Codes"), histogram()] : [], neighbours()));
      if (META.layers.length) parts.push(esl.el("h2", null, "Top contexts"), esl.el("div", { id: "contexts" }, esl.el("p", { class: "quiet" }, "Loading …")));
    } else if (META.layers.length) {
      parts.push(esl.el("div", { class: "pair" }, esl.el("section", null, esl.el("h2", null, "Importance over layers"), curve(), esl.el("h2", null, "Codes"), histogram()), esl.el("section", null, ...nearestTokens, ...writers(), ...neighbours())));
      parts.push(esl.el("h2", null, "Top contexts"), esl.el("div", { class: "controls" }, esl.el("span", { class: "quiet" }, "after block"), esl.el("div", { id: "layers", class: "picks", role: "group", "aria-label": "After which block" }, ...picks())));
      parts.push(esl.el("div", { id: "contexts" }, esl.el("p", { class: "quiet" }, "Loading …")));
    } else parts.push(...nearestTokens, ...writers(), ...neighbours());
    box.replaceChildren(...parts);
    if (META.layers.length) contexts();
    else document.body.dataset.ready = String(factor);
  }

  async function read() {
    const [number, chosen] = location.hash.slice(1).split("/");
    const request = ++lastRequest;  // earlier requests are dropped
    factor = Number(number || 0);
    if (!Number.isInteger(factor) || factor < 0 || factor >= META.n) {
      box.replaceChildren(esl.el("h1", null, `There is no ${META.noun} ${number}`), esl.el("p", null, esl.Noun + "s are numbered from 0 to " + (META.n - 1) + "."));
      return;
    }
    try {
      const loaded = await esl.load("f/" + factor + "/head");
      if (request !== lastRequest) return;
      head = loaded;
    } catch (error) {
      box.replaceChildren(esl.failed(esl.name(factor) + " cannot be shown:", error));
      return;
    }
    layer = chosen !== undefined && META.layers[Number(chosen)] !== undefined ? Number(chosen) : Math.max(0, head.peak);
    show();
    scrollTo(0, 0);
  }

  document.addEventListener("keydown", (event) => {
    if (esl.isTyping() || event.ctrlKey || event.metaKey || event.altKey || !head) return;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step && factor + step >= 0 && factor + step < META.n) location.hash = String(factor + step);
    if (event.key === "[") choose(layer - 1);
    if (event.key === "]") choose(layer + 1);
  });
  addEventListener("hashchange", read);
  read();
})();
