"use strict";
// The parts of a feature's page that a factor's page does not have: labels from weights, virtual weights, heads and neurons.
(function () {
  const el = esl.el;
  const chips = (tokens) => tokens.map((text, i) => esl.chip(text, i ? 0.25 : 0.6));

  // The name of another feature as a link; its own label if it has one.
  function link(feature, label, text) {
    return el("a", { href: esl.href(feature), title: esl.name(feature) }, text || esl.name(feature), label ? el("small", null, " ", el("bdi", null, label)) : null);
  }

  function summary(head, feature) {
    const [, , , hook] = esl.dictionary(feature);
    const sentence = el("p", { class: "sentence" });
    if (head.label) sentence.append(el("b", null, el("bdi", null, head.label)), ". ");
    const outliers = head.read.filter((entry) => entry[4]);
    if (head.legible) sentence.append("Legible: it reads ", ...outliers.slice(0, 3).flatMap((entry, i) => [i ? " " : "", esl.chip(entry[0], 0.5, `z ${entry[3]}`)]), outliers.length > 3 ? ` and ${outliers.length - 3} more outliers` : "", ". ");
    else sentence.append("Not legible: no token that it reads stands out. ");
    if (head.frequency === 0) sentence.append("Dead: its code is 0 in all texts.");
    else if (head.frequency !== null) {
      sentence.append(`Active on ${esl.percent(head.frequency)} of tokens`);
      if (head.strong) {
        const [word, percent, n] = head.strong;
        sentence.append(n === 1 ? "; its one strong context has the target " : `; ${percent} % of its ${n} strong contexts have the target `, esl.chip(word, 0.5));
      }
      sentence.append(".");
    }
    return el("div", null, sentence, hook ? el("p", { class: "quiet hook" }, hook) : null);
  }

  // Tokens with their z-scores as strength; outliers are bold.
  function labelled(head) {
    const entries = (list) => {
      const strong = esl.strengths(list.map((entry) => entry[2]));
      return list.map(([text, id, score, z, isOutlier], i) => {
        const chip = esl.chip(text, strong[i], `${text}, id ${id}, score ${score}, z ${z}${isOutlier ? ", outlier" : ""}`);
        if (isOutlier) chip.classList.add("outlier");
        return chip;
      });
    };
    const list = el("dl", { class: "lines" });
    for (const [title, part] of [["reads", head.read], ["writes", head.write]]) if (part.length) list.append(el("dt", null, title), el("dd", null, ...entries(part)));
    const earlier = head.earlier.filter((entry) => entry[3]);
    if (earlier.length) list.append(el("dt", null, "features"), el("dd", null, ...earlier.map(([f, , z, , tokens, label]) => el("span", { class: "other", title: `z ${z}` }, link(f, label), " ", ...chips(tokens.slice(0, 1))))));
    return [el("h2", null, "Tokens, from weights"), list, el("p", { class: "quiet" }, "Bold: outliers among the best scores.")];
  }

  // The strongest virtual weights of one side, with a bar for each.
  function linked(title, list, none) {
    const largest = Math.max(...list.map(([, weight]) => Math.abs(weight)), 1e-12);
    const rows = list.map(([feature, weight, tokens, label]) => el("li", null,
      link(feature, label),
      el("span", { class: "bar2" + (weight < 0 ? " minus" : ""), style: "--w:" + (Math.abs(weight) / largest).toFixed(3) }),
      el("span", { class: "number" }, esl.figures(weight)),
      el("span", { class: "chips" }, ...chips(tokens))));
    return el("section", null, el("h2", null, title), list.length ? el("ol", { class: "links" }, ...rows) : el("p", { class: "quiet" }, none));
  }

  function heads(title, list, verb) {
    if (!list.length) return [];
    const rows = list.map(([name, isToken, others]) => {
      const [, layer, index] = /^L(\d+)H(\d+)$/.exec(name);
      const parts = others.map(([other, weight, tokens, label]) => el("span", { class: "other" },
        ...(isToken ? [esl.chip(other, 0.25)] : [link(other, label), " ", ...chips((tokens || []).slice(0, 1))]), el("small", null, " " + esl.figures(weight))));
      return [el("dt", null, el("b", { title: `head ${index} of layer ${layer}` }, name)), el("dd", null, ...parts)];
    });
    return [el("h2", null, title), el("dl", { class: "lines heads", "aria-label": verb }, ...rows.flat())];
  }

  function neurons(title, list, chance) {
    return list.length ? [el("h2", null, title), el("div", { class: "writers" }, ...list.map((each) => esl.writer(each))),
      el("p", { class: "quiet" }, `For a random direction the best neuron has ${chance.toFixed(2)} on average.`)] : [];
  }

  function sections(head, feature, codes, neighbours) {
    const chance = META.chance[META.dictionaries.indexOf(esl.dictionary(feature))];
    const isTokens = (list) => list.length && list[0][1];
    const parts = [el("div", { class: "pair even" }, el("section", null, ...labelled(head)), el("section", null, ...(codes.length ? codes : neighbours)))];
    if (META.dictionaries.length > 1) {
      parts.push(el("div", { class: "pair even" },
        linked("Virtual weights in: features that write what it reads", head.in, "No other dictionary writes before this feature reads."),
        linked("Virtual weights out: features that read what it writes", head.out, "No other dictionary reads after this feature writes.")));
      if (head.in.length || head.out.length) parts.push(el("p", { class: "quiet" }, "Raw weights, exact, the strongest by absolute value. A strong weight need not be used: features that are never active together have weights too, because all features share one stream."));
    }
    parts.push(el("div", { class: "pair even" },
      el("section", null,
        ...heads("Heads that move " + (isTokens(head.headsIn) ? "tokens" : "other features") + " into it", head.headsIn, "heads in"),
        ...neurons("Neurons that write what it reads, by cosine", head.neuronsIn, chance[0])),
      el("section", null,
        ...heads("Heads that move it " + (isTokens(head.headsOut) ? "to tokens" : "to other features"), head.headsOut, "heads out"),
        ...neurons("Neurons that read what it writes, by cosine", head.neuronsOut, chance[1]))));
    if (codes.length) parts.push(...neighbours);
    return parts;
  }

  esl.feature = { summary, sections };
})();
