"use strict";
// The list of factors, with search, sorting and filters. Rows are drawn in steps while the user scrolls.
(async function () {
  const STEP = 150;
  const isFeature = META.noun === "feature";
  const LEVELS = isFeature ? Object.fromEntries(META.dictionaries.map(([name], i) => [i, name])) : { w: "word", p: "pattern", r: "long range", e: "early", m: "middle", l: "late" };
  // Why a search finds a factor; n is a share of its top contexts, or the rank of a nearest token.
  const REASONS = [(n) => "target " + n + " %", (n) => "nearest token " + n, (n) => "in context " + n + " %"];
  const VERBS = { 1: "reads ", 3: "writes ", 4: "label " };  // of features, before the word
  // Frequent targets come first, then nearest tokens, then rarer targets, then words around the target.
  const group = (hit) => (hit.reason === 0 ? (hit.share >= META.rare ? 0 : 2) : hit.reason === 1 || hit.reason === 3 ? 1 : hit.reason === 4 ? 0 : 3);
  const rankOf = (hit) => (hit.exact ? 0 : 1e6) + 1e3 * group(hit) + (hit.reason === 1 || hit.reason === 3 ? hit.share : -hit.share);
  const SORTS = isFeature ? [
    ["best", (f) => place[f], "best first"],
    ["feature", (f) => f, "feature"],
    ["dictionary", (f) => Number(rows[f][0]), "dictionary"],
    ["z", (f) => -rows[f][1], "z-score"],
    ["weight", (f) => -rows[f][3], "weight"],
    ["frequency", (f) => -rows[f][4], "frequency"],
  ] : [
    ["best", (f) => place[f], "best first"],
    ["factor", (f) => f, "factor"],
    ["level", (f) => "wpreml".indexOf(rows[f][0]), "level"],
    ["peak", (f) => rows[f][2], "by layer"],
    ["importance", (f) => -rows[f][3], "importance"],
    ["sharpness", (f) => -rows[f][1], "sharpness"],
  ];
  const DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
  const list = document.getElementById("rows"), box = document.getElementById("q"), status = document.getElementById("status");
  let rows, tokens, place = [], shown = [], drawn = 0, lastSearch = 0;
  const state = { q: "", level: "", legible: "", sort: "best" };

  function spark(curve, peak) {
    const svg = esl.svg("svg", { class: "spark", viewBox: "0 0 96 24", "aria-hidden": "true" });
    const at = (i) => [curve.length > 1 ? 3 + (90 * i) / (curve.length - 1) : 48, 21 - (18 * DIGITS.indexOf(curve[i])) / 61];
    svg.append(esl.svg("path", { d: [...curve].map((_, i) => (i ? "L" : "M") + at(i).map((x) => x.toFixed(1)).join(" ")).join("") }));
    const [x, y] = at(peak);
    svg.append(esl.svg("circle", { cx: x, cy: y, r: 2.6 }));
    return svg;
  }

  function draw([factor, hit]) {
    const cell = (name, ...children) => esl.el("span", { class: name }, ...children);
    const tokensOf = (label, indices, note) => {
      const element = cell("tokens", note, ...indices.map((index, i) => esl.chip(tokens[index], i ? 0.25 : 0.6)));
      element.dataset.label = label;
      return element;
    };
    const verb = isFeature && hit ? VERBS[hit.reason] : "";
    const note = hit ? (verb ? cell("hit", verb, esl.token(hit.word), ": ") : cell("hit", esl.token(hit.word), " " + REASONS[hit.reason](hit.share) + ": ")) : null;
    const words = (indices) => indices.map((index) => tokens[index].replaceAll("␣", "")).join(", ");
    if (isFeature) {
      const [dictionary, z, isLegible, weight, frequency, reads, writes, targets, own] = rows[factor];
      const name = [esl.name(factor), own, isLegible ? "legible" : "", `z-score ${(z / 100).toFixed(2)}`, "reads " + words(reads), "writes " + words(writes), targets.length ? "targets " + words(targets) : ""];
      return esl.el("li", null, esl.el("a", { class: "row" + (hit || own ? " noted" : ""), href: esl.href(factor), "aria-label": name.filter(Boolean).join("; ") },
        esl.el("b", null, esl.number(factor)),
        cell("level", LEVELS[dictionary]),
        cell("number z" + (isLegible ? " legible" : ""), (isLegible ? "✓ " : "") + esl.figures(z / 100)),
        cell("number weight", weight < 0 ? "" : esl.figures(weight)),
        cell("number frequency", frequency < 0 ? "" : esl.percent(frequency)),
        tokensOf("reads", reads, own && !note ? cell("hit", esl.token(own), ": ") : note), tokensOf("writes", writes), ...(META.layers.length ? [tokensOf("contexts", targets)] : [])));
    }
    const [level, sharpness, peak, importance, curve, nearest, targets] = rows[factor];
    const label = [`Factor ${factor}`, LEVELS[level], sharpness < 0 ? "" : `sharpness ${(sharpness / 100).toFixed(2)}`, targets.length ? "targets " + words(targets) : "", nearest.length ? "nearest tokens " + words(nearest) : ""];
    return esl.el("li", null, esl.el("a", { class: "row", href: esl.href(factor), "aria-label": label.filter(Boolean).join("; ") },
      esl.el("b", null, String(factor)),
      cell("level", LEVELS[level] || ""),
      curve ? spark(curve, peak) : cell(""),
      cell("number weight", curve ? esl.figures(importance) : ""),
      cell("number sharpness", sharpness < 0 ? "" : (sharpness / 100).toFixed(2)),
      tokensOf("targets", targets, note),
      tokensOf("nearest", nearest)));
  }

  function more() {
    list.querySelector(".more")?.parentNode.remove();
    const part = shown.slice(drawn, drawn + STEP);
    list.append(...part.map(draw));
    drawn += part.length;
    if (drawn < shown.length) {
      const button = esl.el("button", { class: "more", on: { click: more } }, "Show more of " + shown.length.toLocaleString("en"));
      const item = esl.el("li", null, button);
      list.append(item);
      new IntersectionObserver((entries, observer) => {
        if (entries.some((entry) => entry.isIntersecting) && item.isConnected) { observer.disconnect(); more(); }
      }, { rootMargin: "600px" }).observe(item);
    }
  }

  // The factors that match a word, or a longer word that begins with it. If a factor has several matches, the best one.
  async function hits(word) {
    const points = [...word];
    const at = (i) => (points[i] ? points[i].codePointAt(0) : 0);
    const index = await esl.load("w/" + ((31 * at(0) + at(1)) % META.buckets)).catch(() => ({}));
    const best = new Map();
    for (const [entry, flat] of Object.entries(index)) {
      if (entry !== word && !(points.length > 1 && entry.startsWith(word))) continue;
      for (let i = 0; i < flat.length; i += 3) {
        const hit = { word: entry, share: flat[i + 1], reason: flat[i + 2], exact: entry === word };
        const old = best.get(flat[i]);
        if (!old || rankOf(hit) < rankOf(old)) best.set(flat[i], hit);
      }
    }
    return best;
  }

  async function show() {
    const search = ++lastSearch;
    const word = state.q.trim().replaceAll("␣", " ").trim().toLowerCase();
    const hitOf = word ? await hits(word) : null;
    if (search !== lastSearch) return;  // a later search has begun
    let selected = [...rows.keys()];
    if (word && /^\d+$/.test(word) && rows[Number(word)]) {
      const numbered = (META.dictionaries || [["", 0, META.n]]).filter(([, , n]) => Number(word) < n).map(([, first]) => first + Number(word));
      selected = [...numbered, ...[...hitOf.keys()].filter((f) => !numbered.includes(f))];
    } else if (word) selected = [...hitOf.keys()];
    const counts = Object.fromEntries(Object.keys(LEVELS).map((name) => [name, 0]));
    for (const f of selected) if (rows[f][0]) counts[rows[f][0]] += 1;
    if (state.level) selected = selected.filter((f) => rows[f][0] === state.level);
    const nLegible = isFeature ? selected.filter((f) => rows[f][2]).length : 0;
    if (state.legible) selected = selected.filter((f) => rows[f][2]);
    const key = SORTS.find((sort) => sort[0] === state.sort)[1];
    if (word && state.sort === "best") {
      const rank = (f) => (hitOf.get(f) ? rankOf(hitOf.get(f)) : -1);
      selected.sort((a, b) => rank(a) - rank(b) || a - b);
    } else selected.sort((a, b) => key(a) - key(b) || a - b);
    shown = selected.map((f) => [f, hitOf ? hitOf.get(f) : null]);
    list.replaceChildren();
    drawn = 0;
    more();
    const n = selected.length.toLocaleString("en") + " " + META.noun + (selected.length === 1 ? "" : "s");
    status.textContent = word && !selected.length ? (isFeature ? `No feature reads or writes “${state.q.trim()}”` + (META.layers.length ? ", or has it in its top contexts." : ".") : `No factor has “${state.q.trim()}” in its top contexts or nearest tokens.`) : n + (word ? " for “" + state.q.trim() + "”" : "");
    controls(counts, nLegible);
    const query = new URLSearchParams(Object.entries(state).filter(([name, value]) => value && !(name === "sort" && value === "best")));
    history.replaceState(null, "", query.size || String(query) ? "#" + query : location.pathname);
  }

  function controls(counts, nLegible) {
    const levels = document.getElementById("levels"), sorts = document.getElementById("sorts");
    const focused = document.activeElement?.dataset?.key;
    const pick = (key, label, count, pressed, act) => esl.el("button", { type: "button", "data-key": key, "aria-pressed": String(pressed), on: { click: act } }, label, count === null ? null : esl.el("small", null, " " + count.toLocaleString("en")));
    const total = Object.values(counts).reduce((sum, count) => sum + count, 0);
    levels.replaceChildren(...(total ? [pick("all", "all", total, !state.level, () => { state.level = ""; show(); }),
      ...Object.entries(LEVELS).filter(([key]) => rows.some((row) => row[0] === key)).map(([key, label]) => pick(key, label, counts[key], state.level === key, () => { state.level = state.level === key ? "" : key; show(); })),
      ...(isFeature ? [pick("legible", "✓ legible", nLegible, Boolean(state.legible), () => { state.legible = state.legible ? "" : "1"; show(); })] : [])] : []));
    const buttonOf = ([key, , label]) => pick("sort-" + key, label, null, state.sort === key, () => { state.sort = key; show(); });
    document.getElementById("best").replaceChildren(buttonOf(SORTS[0]));
    sorts.replaceChildren(...SORTS.slice(1).map((sort, i) => {
      const button = buttonOf(sort);
      if (i > (isFeature ? 1 : 2)) button.classList.add("right");
      return button;
    }), ...(isFeature ? ["reads", "writes", ...(META.layers.length ? ["targets of contexts"] : [])] : ["most frequent targets", "nearest tokens in embedding space"]).map((title) => esl.el("span", { class: "only" }, title)));
    if (focused) document.querySelector('[data-key="' + focused + '"]')?.focus();
  }

  function read() {
    const query = new URLSearchParams(location.hash.slice(1));
    state.q = query.get("q") || "";
    state.level = query.get("level") in LEVELS ? query.get("level") : "";
    state.legible = isFeature && query.get("legible") ? "1" : "";
    state.sort = SORTS.some((sort) => sort[0] === query.get("sort")) ? query.get("sort") : "best";
    box.value = state.q;
  }

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && document.activeElement === box) { box.value = state.q = ""; show(); }
    if ((event.key !== "ArrowDown" && event.key !== "ArrowUp") || event.ctrlKey || event.metaKey || event.altKey) return;
    const links = [...list.querySelectorAll("a")];
    const index = links.indexOf(document.activeElement) + (event.key === "ArrowDown" ? 1 : -1);
    event.preventDefault();
    if (index < 0) box.focus();
    else links[Math.min(index, links.length - 1)]?.focus();
  });
  box.addEventListener("input", () => { state.q = box.value; show(); });
  addEventListener("hashchange", () => { read(); show(); });
  try {
    const data = await esl.load("overview");
    ({ rows, tokens } = data);
    data.order.forEach((f, i) => { place[f] = i; });
  } catch (error) {
    list.replaceWith(esl.failed(`The list of ${META.noun}s cannot be shown:`, error));
    return;
  }
  read();
  await show();
  document.body.dataset.ready = "1";
})();
