/*
 * Panels of averages: against temperature (Figs. 3 and 7), the numbers of one temperature, its chains.
 * What was chosen is in `state` (explorer.js).
 */

const GROUPS = ['within chains', 'between chains', 'ES', 'OT']; // a colour each
const groupClass = (label) => `s${label === 'samples' ? 0 : GROUPS.indexOf(label)}`;
const modelClass = (index) => `s${index % 5}`;
const panel = (name) => document.getElementById(`panel-${name}`);
const chartOf = (name) => panel(name).querySelector('.chart');

/* Temperatures of a model on the axis chosen; null where it has no T* to be measured in. */
function onAxis(model) {
  if (state.axis === 'T') return model.temperatures;
  return model.temperatures.map((t) => (model.peak_trusted ? t / model.peak : null));
}

function temperatureText(model, at) {
  const text = `T = ${model.temperature_texts[at]}`;
  return model.peak_trusted
    ? `${text} = ${digits(model.temperatures[at] / model.peak, 3)} T*`
    : text;
}

/* Whether every chain stands still there, but chains of different starts do not mix. */
function apart(model, at) {
  return model.settled[at] && !model.equilibrated[at];
}

/* Of a temperature that did not equilibrate. */
function standing(model, at) {
  return apart(model, at) ? 'chains stand still' : 'not equilibrated';
}

function verdictOf(model, at) {
  if (!model.equilibrated[at]) return `${standing(model, at)}: ${model.reason[at]}`;
  return `equilibrated: R̂ = ${digits(model.r_hat[at], 3)}, ESS ${digits(model.ess[at], 3)}`;
}

function shownModels() {
  const all = study.models.map((model, index) => ({ model, index }));
  return all.filter(
    ({ model, index }) =>
      (index === state.model || state.compare) && (state.axis === 'T' || model.peak_trusted),
  );
}

function temperatureAxis(models) {
  const all = models.flatMap(({ model }) => onAxis(model));
  const label = state.axis === 'T' ? 'temperature T (nats)' : 'temperature T/T*';
  return { domain: aroundByFactor(all) || [0.5, 2], log: true, label };
}

/* One observable of the table over temperature: chosen model in full, others faint. */
function drawLadder(name, key, { random = null, zero = false } = {}) {
  const models = shownModels().filter(({ model }) => model.ladder[key]);
  const current = study.models[state.model];
  panel(name).hidden = !current.ladder[key];
  if (panel(name).hidden) return;
  const series = [];
  const heights = [];
  const settled = [];
  models.forEach(({ model, index }, position) => {
    const column = model.ladder[key];
    const xs = onAxis(model);
    const points = xs.map((x, at) => {
      if (column.mean[at] !== null) {
        const ends = [
          column.mean[at] - (column.error[at] || 0),
          column.mean[at] + (column.error[at] || 0),
        ];
        heights.push(...ends);
        if (model.settled[at]) settled.push(...ends);
      }
      return {
        x,
        y: column.mean[at],
        ey: column.error[at],
        hollow: !model.settled[at],
        half: apart(model, at),
        lines: [
          `${model.name}, ${temperatureText(model, at)}`,
          valueText(model, key, at),
          verdictOf(model, at),
          ...(model.note[at] ? [model.note[at]] : []),
        ],
        pick: () => choose({ model: index, at, weights: 'samples' }),
      };
    });
    for (const [label, values] of Object.entries(model.trained)) {
      const one = values[key];
      if (!one) continue;
      const shift = Math.min(9, 30 / models.length) * (position - (models.length - 1) / 2);
      const pick = () => choose({ model: index, weights: label });
      const side = { side: label, shift, pick };
      one.runs.forEach((value, run) =>
        points.push({
          ...side,
          y: value,
          dot: true,
          lines: [
            `${model.name}, ${label} of run ${run + 1}`,
            `${symbolOf(key)} = ${digits(value)}`,
          ],
        }),
      );
      points.push({
        ...side,
        y: one.mean,
        ey: one.deviation,
        lines: [
          `${model.name}, ${label}, ${one.runs.length} runs`,
          `${symbolOf(key)} = ${one.text}`,
        ],
      });
      heights.push(...one.runs);
      settled.push(...one.runs);
    }
    series.push({
      kind: 'points',
      cls: modelClass(index),
      symbol: index % 5,
      join: true,
      faint: index !== state.model,
      walk: index === state.model,
      points,
    });
    if (key === 'specific_heat') {
      settled.push(...model.slope.mean.filter((value) => value !== null));
      series.push({
        kind: 'line',
        cls: modelClass(index),
        dashed: true,
        faint: index !== state.model,
        points: xs.map((x, at) => ({ x, y: model.slope.mean[at] })),
      });
    }
  });
  const span =
    key === 'specific_heat'
      ? [0, 1.15 * Math.max(0, ...(settled.some((v) => v > 0) ? settled : heights)) || 1]
      : around(random === null ? heights : [...heights, random]) || [0, 1];
  if (zero) span[0] = Math.min(0, span[0]);
  series.sort((a, b) => Number(b.faint) - Number(a.faint)); // the chosen model on top
  const peak = state.axis === 'T' ? current.peak : 1;
  const guides = random === null ? [] : [{ y: random, text: 'random' }];
  const settledAtAll = current.settled.some(Boolean);
  if (peak !== null && settledAtAll)
    guides.push({ x: peak, text: current.peak_caveat ? 'T*?' : 'T*' });
  drawChart(chartOf(name), {
    label:
      `${panel(name).querySelector('h3').firstChild.textContent.trim()} against temperature, ${current.name}: ` +
      `arrow keys step through the temperatures, Enter chooses one`,
    empty: heights.length ? '' : 'not known at any temperature',
    x: temperatureAxis(models),
    y: { domain: span, label: QUANTITIES[key] ? QUANTITIES[key].label : symbolOf(key) },
    side: models.some(({ model }) => Object.values(model.trained).some((v) => v[key]))
      ? ['ES', 'OT']
      : [],
    series,
    guides,
    chosen: onAxis(current)[state.at],
  });
}

/* The variance of a loss still on its way is no specific heat, and is not called one. */
function valueText(model, key, at) {
  const text = model.ladder[key].text[at];
  if (key !== 'specific_heat' || model.settled[at]) return `${symbolOf(key)} = ${text}`;
  return `(⟨U²⟩ − ⟨U⟩²)/T² = ${text}, not C`;
}

function symbolOf(key) {
  if (QUANTITIES[key]) return QUANTITIES[key].symbol;
  return (study.precision.find((rule) => rule.key === key) || { symbol: key }).symbol;
}

function drawLadderLegend() {
  drawLegend(document.getElementById('ladder-legend'), [
    ...shownModels().map(({ model, index }) => ({
      cls: modelClass(index),
      symbol: index % 5,
      text: model.name,
    })),
    { symbol: 0, half: true, text: 'chains stand still' },
    { symbol: 0, hollow: true, text: 'not equilibrated' },
    { guide: true, text: 'T*, where d⟨U⟩/dT is largest' },
    ...study.models
      .filter((model) => state.axis !== 'T' && state.compare && !model.peak_trusted)
      .map((model) => ({ bare: true, text: `${model.name}: T* doubtful, not on this scale` })),
  ]);
}

/* The row of the table for the weights chosen, whether they equilibrated, and why not. */
function drawNumbers(model) {
  const sampled = state.weights === 'samples';
  document.getElementById('numbers-title').textContent = sampled
    ? `${model.name} at ${temperatureText(model, state.at)}`
    : `${model.name}, ${state.weights === 'ES' ? 'early-stopped (ES)' : 'over-trained (OT)'} weights`;
  const verdict = document.getElementById('verdict');
  const good = model.equilibrated[state.at];
  verdict.className = sampled && !good ? 'verdict not' : 'verdict';
  const strong = document.createElement('strong');
  const words = standing(model, state.at);
  strong.textContent = good ? 'Equilibrated. ' : `${words[0].toUpperCase()}${words.slice(1)}: `;
  const basis = apart(model, state.at)
    ? 'Every chain stands still: averages and errors are over the starts.'
    : 'Averages depend on the start.';
  const rest = [good ? '' : `${model.reason[state.at]}. ${basis}`];
  if (model.note[state.at]) rest.push(`Note: ${model.note[state.at]}.`);
  verdict.replaceChildren(
    ...(sampled ? [strong, rest.join(' ')] : ['Mean ± standard deviation over runs.']),
  );
  const rows = sampled
    ? model.columns
        .map((name, k) => [name, model.rows[state.at][k]])
        .slice(2)
        .concat([['chains × draws', `${model.chains[state.at]} × ${model.draws[state.at]}`]])
    : model.trained_columns.map((name, k) => [name, trainedRow(model)[k]]).slice(1);
  rows.push([model.peak_caveat ? `T* (doubtful: ${model.peak_caveat})` : 'T*', model.peak_text]);
  rows.push(
    ['Q = |w|²', digits(model.norm2)],
    ['parameters N', model.parameters.toLocaleString('en')],
  );
  document.getElementById('numbers').replaceChildren(
    ...rows.map(([name, value]) => {
      const row = document.createElement('tr');
      const head = document.createElement('th');
      head.scope = 'row';
      head.textContent = name;
      const cell = document.createElement('td');
      cell.textContent = value;
      row.append(head, cell);
      return row;
    }),
  );
}

const trainedRow = (model) => model.trained_rows.find(([label]) => label === state.weights);

function drawTraces(model) {
  const key = state.observable;
  const { moves, averaged, from, chains } = model.traces;
  const own = chains.filter((chain) => chain.temperature === state.at);
  const series = own.map((chain, k) => {
    const values = unpack(chain[key]);
    return {
      kind: 'line',
      cls: `s${k % 5}`,
      dashed: !chain.kept,
      walk: k === 0,
      points: values.map((y, n) => ({
        x: moves[n],
        y,
        lines: [
          `chain ${k + 1} from start ${chain.start}${chain.kept ? '' : ' (left out)'}`,
          `move ${digits(moves[n], 6)}`,
          `${QUANTITIES[key].symbol.replace(/[⟨⟩]/g, '')} = ${digits(y)}`,
        ],
      })),
    };
  });
  const mean = model.ladder[key] ? model.ladder[key].mean[state.at] : null;
  const all = series.flatMap((one) => one.points.map((p) => p.y));
  const first = moves[0];
  document.getElementById('traces-caption').textContent =
    `The ${own.length} chain${own.length === 1 ? '' : 's'} at T = ${model.temperature_texts[state.at]}; shaded: burn-in; ` +
    'dotted: the mean after it. Level traces that mix have forgotten their start.' +
    (averaged > 1 ? ` A point is the mean of ${averaged} draws.` : '');
  drawChart(chartOf('traces'), {
    label: `${QUANTITIES[key].trace} of every chain of ${model.name} against the move`,
    x: {
      domain: moves.length > 1 ? [first, moves[moves.length - 1]] : [first - 1, first + 1],
      label: 'move',
    },
    y: {
      domain: around(mean === null ? all : [...all, mean]) || [0, 1],
      label: QUANTITIES[key].trace,
    },
    series,
    bands:
      from[state.at] !== null && from[state.at] > first ? [{ x0: first, x1: from[state.at] }] : [],
    guides: mean === null ? [] : [{ y: mean, text: 'mean' }],
  });
}
