"use strict";
// The list of factors: searched, sorted, filtered, and drawn a screenful at a time.
(async function () {
  const STEP = 150;
  const LEVELS = { w: "word", p: "pattern", l: "long range" };
  const WHY = [(n) => "target " + n + " %", () => "nearest token", (n) => "around " + n + " %"];
  const SORTS = [
    ["factor", (f) => f, "factor"],
    ["level", (f) => "wpl".indexOf(rows[f][0]), "level"],
    ["peak", (f) => rows[f][2], "over layers"],
    ["importance", (f) => -rows[f][3], "importance"],
    ["sharp", (f) => -rows[f][1], "sharpness"],
  ];
  const CODES = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
  const list = document.getElementById("rows"), box = document.getElementById("q"), said = document.getElementById("said");
  let rows, tokens, shown = [], drawn = 0, asking = 0;
  const state = { q: "", level: "", sort: "factor" };

  function spark(code, peak) {
    const svg = esl.svg("svg", { class: "spark", viewBox: "0 0 96 24", "aria-hidden": "true" });
    const at = (i) => [code.length > 1 ? 3 + (90 * i) / (code.length - 1) : 48, 21 - (18 * CODES.indexOf(code[i])) / 61];
    svg.append(esl.svg("path", { d: [...code].map((_, i) => (i ? "L" : "M") + at(i).map((x) => x.toFixed(1)).join(" ")).join("") }));
    const [x, y] = at(peak);
    svg.append(esl.svg("circle", { cx: x, cy: y, r: 2.6 }));
    return svg;
  }

  function draw([factor, hit]) {
    const [level, sharp, peak, importance, code, near, common] = rows[factor];
    const cell = (name, ...children) => esl.el("span", { class: name }, ...children);
    const tokensOf = (what, numbers, extra) => {
      const found = cell("tokens", extra, ...numbers.map((n, i) => esl.chip(tokens[n], i ? 0.25 : 0.6)));
      found.dataset.what = what;
      return found;
    };
    const note = hit ? cell("hit", esl.token(hit.word), " " + WHY[hit.why](hit.share) + ": ") : null;
    const words = (numbers) => numbers.map((n) => tokens[n].replaceAll("␣", "")).join(", ");
    const said = [`Factor ${factor}`, LEVELS[level], sharp < 0 ? "" : `sharpness ${sharp} percent`, common.length ? "targets " + words(common) : "", near.length ? "nearest tokens " + words(near) : ""];
    return esl.el("li", null, esl.el("a", { class: "row", href: "factor.html#" + factor, "aria-label": said.filter(Boolean).join("; ") },
      esl.el("b", null, String(factor)),
      cell("level", LEVELS[level] || ""),
      code ? spark(code, peak) : cell(""),
      cell("number weight", code ? esl.figures(importance) : ""),
      cell("number sharp", sharp < 0 ? "" : sharp + " %"),
      tokensOf("targets", common, note),
      tokensOf("nearest", near)));
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

  // Factors by word: those with the word itself first, then longer words, the larger share first.
  async function hits(word) {
    const points = [...word];
    const at = (i) => (points[i] ? points[i].codePointAt(0) : 0);
    const index = await esl.load("w/" + ((31 * at(0) + at(1)) % META.buckets)).catch(() => ({}));
    const found = new Map();
    for (const [entry, flat] of Object.entries(index)) {
      if (entry !== word && !(points.length > 1 && entry.startsWith(word))) continue;
      for (let i = 0; i < flat.length; i += 3) {
        const hit = { word: entry, share: flat[i + 1], why: flat[i + 2], exact: entry === word };
        const old = found.get(flat[i]);
        const better = !old || (hit.exact === old.exact ? hit.share > old.share : hit.exact);
        if (better) found.set(flat[i], hit);
      }
    }
    return found;
  }

  async function show() {
    const turn = ++asking;
    const word = state.q.trim().replaceAll("␣", " ").trim().toLowerCase();
    const found = word ? await hits(word) : null;
    if (turn !== asking) return;
    let chosen = [...rows.keys()];
    if (word && /^\d+$/.test(word) && rows[Number(word)]) {
      const own = Number(word);
      chosen = [own, ...[...found.keys()].filter((f) => f !== own)];
    } else if (word) chosen = [...found.keys()];
    const counts = { w: 0, p: 0, l: 0 };
    for (const f of chosen) counts[rows[f][0]] += 1;
    if (state.level) chosen = chosen.filter((f) => rows[f][0] === state.level);
    const key = SORTS.find((sort) => sort[0] === state.sort)[1];
    if (word && state.sort === "factor") {
      const rank = (f) => { const hit = found.get(f); return hit ? (hit.exact ? 0 : 1e6) + (hit.why === 1 ? 500 : 0) - hit.share : -1; };
      chosen.sort((a, b) => rank(a) - rank(b) || a - b);
    } else chosen.sort((a, b) => key(a) - key(b) || a - b);
    shown = chosen.map((f) => [f, found ? found.get(f) : null]);
    list.replaceChildren();
    drawn = 0;
    more();
    const n = chosen.length.toLocaleString("en") + (chosen.length === 1 ? " factor" : " factors");
    said.textContent = word && !chosen.length ? "No factor's strongest contexts or nearest tokens hold “" + state.q.trim() + "”." : n + (word ? " for “" + state.q.trim() + "”, best first" : "");
    controls(counts);
    const query = new URLSearchParams(Object.entries(state).filter(([name, value]) => value && !(name === "sort" && value === "factor")));
    history.replaceState(null, "", query.size || String(query) ? "#" + query : location.pathname);
  }

  function controls(counts) {
    const levels = document.getElementById("levels"), sorts = document.getElementById("sorts");
    const focused = document.activeElement?.dataset?.key;
    const pick = (key, label, count, pressed, act) => esl.el("button", { type: "button", "data-key": key, "aria-pressed": String(pressed), on: { click: act } }, label, count === null ? null : esl.el("small", null, " " + count.toLocaleString("en")));
    const total = counts.w + counts.p + counts.l;
    levels.replaceChildren(...(total ? [pick("all", "all", total, !state.level, () => { state.level = ""; show(); }),
      ...Object.entries(LEVELS).map(([key, label]) => pick(key, label, counts[key], state.level === key, () => { state.level = state.level === key ? "" : key; show(); }))] : []));
    sorts.replaceChildren(...SORTS.map(([key, , label], i) => {
      const button = pick("sort-" + key, label, null, state.sort === key, () => { state.sort = key; show(); });
      if (i > 2) button.classList.add("right");
      return button;
    }), esl.el("span", { class: "only" }, "commonest targets"), esl.el("span", { class: "only" }, "nearest tokens in embedding space"));
    if (focused) document.querySelector('[data-key="' + focused + '"]')?.focus();
  }

  function read() {
    const query = new URLSearchParams(location.hash.slice(1));
    state.q = query.get("q") || "";
    state.level = query.get("level") in LEVELS ? query.get("level") : "";
    state.sort = SORTS.some((sort) => sort[0] === query.get("sort")) ? query.get("sort") : "factor";
    box.value = state.q;
  }

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && document.activeElement === box) { box.value = state.q = ""; show(); }
    if ((event.key !== "ArrowDown" && event.key !== "ArrowUp") || event.ctrlKey || event.metaKey || event.altKey) return;
    const links = [...list.querySelectorAll("a")];
    const place = links.indexOf(document.activeElement) + (event.key === "ArrowDown" ? 1 : -1);
    event.preventDefault();
    if (place < 0) box.focus();
    else links[Math.min(place, links.length - 1)]?.focus();
  });
  box.addEventListener("input", () => { state.q = box.value; show(); });
  addEventListener("hashchange", () => { read(); show(); });
  try {
    ({ rows, tokens } = await esl.load("overview"));
  } catch (error) {
    list.replaceWith(esl.wait("The list of factors is missing:", error));
    return;
  }
  read();
  await show();
  document.body.dataset.ready = "1";
})();
