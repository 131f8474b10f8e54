// The page's behaviour: one choice of model, condition, experiment and comparison, which figures and browser follow.
(() => {
  "use strict";
  const report = JSON.parse(document.getElementById("report-data").textContent);
  const KINDS = ["model", "condition", "experiment", "comparison"];
  const choice = { model: null, condition: null, experiment: null, comparison: null };
  const views = new Map();
  const element = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };

  // What a figure shows of a kind: the choice, its own default, or null for all.
  const shownOf = (figure, kind) =>
    choice[kind] ?? figure.defaults[kind] ?? (kind === "condition" ? report.conditions[0] : null);

  function isOf(row, kind, value) {
    if (kind === "model") return [row.model, row.model_a, row.model_b, row.pair].includes(value);
    return row[kind] === value;
  }

  function rowsShown(figure) {
    const kinds = figure.follows.filter((kind) => choice[kind] !== null || figure.defaults[kind] || kind === "condition");
    return figure.spec.datasets.rows.filter((row) =>
      kinds.every((kind) => !(kind in row) && kind !== "model" ? true : isOf(row, kind, shownOf(figure, kind))));
  }

  function choose(kind, value, toggles = true) {
    choice[kind] = value === null || (toggles && choice[kind] === value) ? null : value;
    if (kind === "model") {
      const mine = report.comparisons.find((c) => c.model_b === choice.model) ??
        report.comparisons.find((c) => c.model_a === choice.model);
      choice.comparison = choice.model !== null && mine ? mine.comparison : null;
    }
    update();
  }

  function update() {
    for (const select of document.querySelectorAll("select[data-choice]")) {
      const kind = select.dataset.choice;
      select.value = choice[kind] ?? (kind === "comparison" ? report.comparison : kind === "condition" ? report.conditions[0] : "");
    }
    const chosen = KINDS.slice(0, 3).map((kind) => [kind, choice[kind]]).filter(([, value]) => value !== null);
    const state = document.getElementById("state");
    state.replaceChildren("Shown: ");
    if (!chosen.length) state.append("everything, condition ", element("strong", { textContent: report.conditions[0] }));
    chosen.forEach(([kind, value], idx) =>
      state.append(`${idx ? ", " : ""}${kind} `, element("strong", { textContent: value })));
    for (const [name, view] of views) show(report.figures[name], name, view);
    showTranscripts();
  }

  function show(figure, name, view) {
    for (const kind of figure.follows) view.signal(`only_${kind}`, choice[kind]);
    view.runAsync();
    const line = document.querySelector(`#${name} .shown`);
    line.replaceChildren();
    for (const [kind] of Object.entries(figure.defaults)) {
      line.append(line.childNodes.length ? ", " : "", `${kind}: `, element("strong", { textContent: shownOf(figure, kind) }));
    }
    if (!rowsShown(figure).length) line.append(line.childNodes.length ? " – " : "", "nothing here of what is chosen");
    const open = document.querySelector(`#${name} details[open]`);
    if (open) fillNumbers(open, figure);
  }

  // A click on a mark, a row's name or an entry of a legend chooses what it stands for.
  function clicked(figure, item) {
    if (!item || !item.datum) return;
    const datum = item.datum;
    const label = datum.value ?? datum.label;
    if (typeof label === "string" && /^(axis|legend)/.test(item.mark.role ?? "")) {
      if (report.models.includes(label)) choose("model", label);
      else if (report.experiments.includes(label)) choose("experiment", label);
      return;
    }
    const kind = figure.picks;
    const value = kind === "model" ? datum.model ?? datum.pair : datum[kind];
    const known = kind === "model" ? report.models : report.experiments;
    if (known.includes(value)) choose(kind, value);
  }

  // Names beside rows and in legends answer to clicks only where Vega is told so.
  function clickable(spec) {
    for (const axis of spec.axes ?? []) {
      axis.encode = { ...axis.encode, labels: { ...axis.encode?.labels, interactive: true } };
    }
    for (const legend of spec.legends ?? []) {
      const encode = legend.encode ?? {};
      legend.encode = {
        ...encode,
        labels: { ...encode.labels, interactive: true },
        symbols: { ...encode.symbols, interactive: true },
      };
    }
    return spec;
  }

  function fitted(spec, width) {
    const narrow = width < 520;
    const config = structuredClone(spec.config);
    config.axis.labelLimit = narrow ? Math.round(width * 0.4) : 220;
    config.axis.titleLimit = narrow ? width - 30 : width;
    if (narrow) config.axisXQuantitative.tickCount = 4;
    config.legend.columns = Math.max(1, Math.min(4, Math.floor(width / 210)));
    config.legend.labelLimit = narrow ? Math.round(width * 0.45) : 240;
    if (narrow) config.axis.labelFontSize = config.legend.labelFontSize = 11;
    const fits = Math.floor(width / 10);
    return { ...(narrow ? wrapped(spec, fits) : spec), config };
  }

  // A copy whose titles of axes run over several lines where one holds no more than so many characters.
  function wrapped(part, fits) {
    if (Array.isArray(part)) return part.map((each) => wrapped(each, fits));
    if (part === null || typeof part !== "object") return part;
    return Object.fromEntries(Object.entries(part).map(([key, value]) => {
      if (key === "datasets") return [key, value];
      return [key, key === "title" && typeof value === "string" ? lines(value, fits) : wrapped(value, fits)];
    }));
  }

  function lines(text, fits) {
    const found = [""];
    for (const word of text.split(" ")) {
      const last = found[found.length - 1];
      if (last && last.length + word.length + 1 > fits) found.push(word);
      else found[found.length - 1] = last ? `${last} ${word}` : word;
    }
    return found.length > 1 ? found : text;
  }

  const ONLY_ERRORS = 1; // of Vega, which warns of what it settles by itself

  async function draw(name, figure) {
    const place = document.querySelector(`#${name} .chart`);
    const { view } = await vegaEmbed(place, fitted(figure.spec, place.clientWidth), {
      renderer: "svg", actions: false, logLevel: ONLY_ERRORS, patch: clickable, tooltip: { theme: "light" },
    });
    view.addEventListener("click", (event, item) => clicked(figure, item));
    views.set(name, view);
    const tools = document.querySelector(`#${name} .tools`);
    for (const type of ["png", "svg"]) {
      const button = element("button", { type: "button", textContent: `Save ${type.toUpperCase()}` });
      button.addEventListener("click", () => save(view, name, type));
      tools.prepend(button);
    }
    const numbers = element("details", {}, element("summary", { textContent: "Numbers" }));
    numbers.addEventListener("toggle", () => numbers.open && fillNumbers(numbers, figure));
    tools.append(numbers);
  }

  async function save(view, name, type) {
    const link = element("a", { href: await view.toImageURL(type, type === "png" ? 2 : 1), download: `${name}.${type}` });
    document.body.append(link);
    link.click();
    link.remove();
  }

  const MAX_NUMBERS = 100;
  const HIDDEN = /^(is_default_|order$|colour$|cut_)|_shown$/;

  function fillNumbers(place, figure) {
    const rows = rowsShown(figure);
    const columns = Object.keys(rows[0] ?? {}).filter((column) => !HIDDEN.test(column));
    const text = (value) => (value === null ? "–" : typeof value === "number" ? String(Number(value.toPrecision(4))) : String(value));
    const isText = (column) => rows.some((row) => typeof row[column] === "string");
    const head = element("tr", {}, ...columns.map((column) =>
      element("th", { scope: "col", textContent: column, className: isText(column) ? "text" : "" })));
    const body = rows.slice(0, MAX_NUMBERS).map((row) => element("tr", {}, ...columns.map((column) =>
      element("td", { textContent: text(row[column]), className: isText(column) ? "text" : "" }))));
    const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
    const scroll = element("div", { className: "scroll", tabIndex: 0 }, table);
    const more = rows.length > MAX_NUMBERS ? [element("p", { className: "shown", textContent: `The first ${MAX_NUMBERS} of ${rows.length.toLocaleString("en")} rows; the tables have all.` })] : [];
    place.replaceChildren(place.querySelector("summary"), scroll, ...more);
  }

  // The browser of transcripts. A response's ground goes from white (0 nats) to orange (4 nats and more).
  const FULL_NATS = 4;
  const ground = (nll) => {
    const share = Math.min(1, Math.max(0, nll / FULL_NATS));
    const mix = [230, 115, 30].map((end) => Math.round(255 + (end - 255) * share));
    return `rgb(${mix.join(" ")})`;
  };

  function showTranscripts() {
    const select = document.getElementById("transcript-choice");
    if (!select) return;
    const mine = report.transcripts.map((transcript, idx) => ({ transcript, idx }))
      .filter(({ transcript }) => choice.experiment === null || transcript.experiment === choice.experiment);
    const before = select.value;
    select.replaceChildren(...mine.map(({ transcript, idx }) =>
      element("option", { value: String(idx), textContent: `${transcript.experiment} · ${transcript.participant}` })));
    if (mine.some(({ idx }) => String(idx) === before)) select.value = before;
    showTranscript();
  }

  function showTranscript() {
    const select = document.getElementById("transcript-choice");
    const place = document.getElementById("transcript");
    const line = document.getElementById("transcript-state");
    const transcript = report.transcripts[Number(select.value)];
    if (select.value === "" || !transcript) {
      place.replaceChildren();
      line.textContent = "No transcript of this experiment is on the page.";
      return;
    }
    const model = choice.model ?? report.model;
    const condition = choice.condition ?? report.conditions[0];
    const nlls = transcript.nll[`${model}\n${condition}`] ?? [];
    const withNumbers = document.getElementById("transcript-numbers").checked;
    const scored = nlls.filter((nll) => nll !== null);
    const mean = scored.length ? (scored.reduce((a, b) => a + b, 0) / scored.length).toFixed(3) : "–";
    line.replaceChildren("Model ", element("strong", { textContent: model }), ", condition ",
      element("strong", { textContent: condition }), `: mean ${mean} nats over ${scored.length} scored responses` +
      (transcript.cut ? `; the first part of a text of ${transcript.cut.toLocaleString("en")} characters` : ""));
    place.replaceChildren(...transcript.pieces.map((piece, idx) => {
      if (idx % 2 === 0) return document.createTextNode(piece);
      const nll = nlls[(idx - 1) / 2] ?? null;
      const said = nll === null ? "not scored" : `${nll.toFixed(2)} nats`;
      const mark = element("mark", { title: said, className: nll === null ? "unscored" : "" }, piece || "∅");
      if (nll !== null) mark.style.background = ground(nll);
      if (withNumbers) mark.append(element("sub", { textContent: ` ${nll === null ? "–" : nll.toFixed(2)}` }));
      return mark;
    }));
  }

  // On paper a chart is as wide as the page, whatever the window was.
  const PAPER_WIDTH = 680;
  function forPaper(printing) {
    for (const view of views.values()) {
      if (!view.container().dataset.width) view.container().dataset.width = String(view.width());
      view.width(printing ? PAPER_WIDTH : Number(view.container().dataset.width)).run();
    }
  }

  async function start() {
    window.addEventListener("beforeprint", () => forPaper(true));
    window.addEventListener("afterprint", () => forPaper(false));
    for (const select of document.querySelectorAll("select[data-choice]")) {
      select.addEventListener("change", () => choose(select.dataset.choice, select.value || null, false));
    }
    document.getElementById("choices").addEventListener("submit", (event) => event.preventDefault());
    const reset = () => { for (const kind of KINDS) choice[kind] = null; update(); };
    document.getElementById("reset").addEventListener("click", reset);
    document.addEventListener("keydown", (event) => { if (event.key === "Escape") reset(); });
    document.getElementById("transcript-choice")?.addEventListener("change", showTranscript);
    document.getElementById("transcript-numbers")?.addEventListener("change", showTranscript);
    for (const [name, figure] of Object.entries(report.figures)) await draw(name, figure);
    update();
    document.documentElement.dataset.ready = "yes";
  }

  start();
})();
