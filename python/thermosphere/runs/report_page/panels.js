/* What each panel shows of the study, given what was chosen (explorer.js: `state`). */

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
  return model.peak_trusted ? `${text} = ${digits(model.temperatures[at] / model.peak, 3)} T*` : text;
}

function verdictOf(model, at) {
  if (!model.equilibrated[at]) return `not equilibrated: ${model.reason[at]}`;
  return `equilibrated: R̂ = ${digits(model.r_hat[at], 3)}, ESS ${digits(model.ess[at], 3)}`;
}

function shownModels() {
  const all = study.models.map((model, index) => ({ model, index }));
  return all.filter(({ model, index }) =>
    (index === state.model || state.compare) && (state.axis === 'T' || model.peak_trusted));
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
        const ends = [column.mean[at] - (column.error[at] || 0), column.mean[at] + (column.error[at] || 0)];
        heights.push(...ends);
        if (model.equilibrated[at]) settled.push(...ends);
      }
      return {
        x, y: column.mean[at], ey: column.error[at], hollow: !model.equilibrated[at],
        lines: [
          `${model.name}, ${temperatureText(model, at)}`,
          `${symbolOf(key)} = ${column.text[at]}`,
          verdictOf(model, at),
          ...(model.note[at] ? [model.note[at]] : []),
        ],
        pick: () => choose({ model: index, at, weights: 'samples' }),
      };
    });
    for (const [label, values] of Object.entries(model.trained)) {
      const runs = (values[key] || []).filter((v) => v !== null);
      if (!runs.length) continue;
      const shift = Math.min(9, 30 / models.length) * (position - (models.length - 1) / 2);
      heights.push(...runs);
      settled.push(...runs);
      const pick = () => choose({ model: index, weights: label });
      runs.forEach((value, run) => points.push({
        side: label, shift, y: value, dot: true, pick,
        lines: [`${model.name}, ${label} of run ${run + 1}`, `${symbolOf(key)} = ${digits(value)}`],
      }));
      const row = model.trained_rows.find(([name_]) => name_ === label);
      const text = row && row[model.trained_columns.indexOf(TRAINED_COLUMNS[key])];
      const mean = runs.reduce((a, b) => a + b) / runs.length;
      const spread = runs.length > 1
        ? Math.sqrt(runs.reduce((a, b) => a + (b - mean) ** 2, 0) / (runs.length - 1)) : null;
      points.push({
        side: label, shift, y: mean, ey: spread, pick,
        lines: [`${model.name}, ${label}, ${runs.length} runs`, `${symbolOf(key)} = ${text || digits(mean)}`],
      });
    }
    series.push({
      kind: 'points', cls: modelClass(index), symbol: index % 5, join: true, faint: index !== state.model,
      walk: index === state.model, points,
    });
    if (key === 'specific_heat') {
      series.push({
        kind: 'line', cls: modelClass(index), dashed: true, faint: index !== state.model,
        points: xs.map((x, at) => ({ x, y: model.slope.mean[at] })),
      });
    }
  });
  const span = key === 'specific_heat'
    ? [0, 1.15 * Math.max(0, ...(settled.some((v) => v > 0) ? settled : heights)) || 1]
    : around(random === null ? heights : [...heights, random]) || [0, 1];
  if (zero) span[0] = Math.min(0, span[0]);
  series.sort((a, b) => Number(b.faint) - Number(a.faint)); // the chosen model on top
  const peak = state.axis === 'T' ? current.peak : 1;
  const guides = random === null ? [] : [{ y: random, text: 'random' }];
  const settledAtAll = current.equilibrated.some(Boolean);
  if (peak !== null && settledAtAll) guides.push({ x: peak, text: current.peak_caveat ? 'T*?' : 'T*' });
  drawChart(chartOf(name), {
    label: `${panel(name).querySelector('h3').firstChild.textContent.trim()} against temperature, ${current.name}: `
      + `arrow keys step through the temperatures, Enter chooses one`,
    empty: heights.length ? '' : 'not known at any temperature',
    x: temperatureAxis(models),
    y: { domain: span, label: QUANTITIES[key] ? QUANTITIES[key].label : symbolOf(key) },
    side: models.some(({ model }) => Object.values(model.trained).some((v) => v[key])) ? ['ES', 'OT'] : [],
    series,
    guides,
    chosen: onAxis(current)[state.at],
  });
}

const TRAINED_COLUMNS = {
  train_loss: 'training loss', train_error: 'train error', validation_error: 'validation error',
  test_error: 'test error', precision_at_l: 'P@L', precision_at_l_tolerant: 'P̃@L',
};

function symbolOf(key) {
  if (QUANTITIES[key]) return QUANTITIES[key].symbol;
  return (study.precision.find((rule) => rule.key === key) || { symbol: key }).symbol;
}

function drawLadderLegend() {
  drawLegend(document.getElementById('ladder-legend'), [
    ...shownModels().map(({ model, index }) => ({ cls: modelClass(index), symbol: index % 5, text: model.name })),
    { symbol: 0, hollow: true, text: 'not equilibrated' },
    { guide: true, text: 'T*, the maximum of C' },
    ...study.models.filter((model) => state.axis !== 'T' && state.compare && !model.peak_trusted)
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
  strong.textContent = good ? 'Equilibrated. ' : 'Not equilibrated: ';
  const rest = [good ? '' : `${model.reason[state.at]}. Averages depend on the start.`];
  if (model.note[state.at]) rest.push(`Note: ${model.note[state.at]}.`);
  verdict.replaceChildren(...(sampled ? [strong, rest.join(' ')] : ['Mean ± standard deviation over runs.']));
  const rows = sampled
    ? model.columns.map((name, k) => [name, model.rows[state.at][k]]).slice(2)
      .concat([['chains × draws', `${model.chains[state.at]} × ${model.draws[state.at]}`]])
    : model.trained_columns.map((name, k) => [name, trainedRow(model)[k]]).slice(1);
  rows.push([model.peak_caveat ? `T* (doubtful: ${model.peak_caveat})` : 'T*', model.peak_text]);
  rows.push(['Q = |w|²', digits(model.norm2)], ['parameters N', model.parameters.toLocaleString('en')]);
  document.getElementById('numbers').replaceChildren(...rows.map(([name, value]) => {
    const row = document.createElement('tr');
    const head = document.createElement('th');
    head.scope = 'row';
    head.textContent = name;
    const cell = document.createElement('td');
    cell.textContent = value;
    row.append(head, cell);
    return row;
  }));
}

const trainedRow = (model) => model.trained_rows.find(([label]) => label === state.weights);

function drawTraces(model) {
  const key = state.observable;
  const { moves, averaged, from, chains } = model.traces;
  const own = chains.filter((chain) => chain.temperature === state.at);
  const series = own.map((chain, k) => {
    const values = unpack(chain[key]);
    return {
      kind: 'line', cls: `s${k % 5}`, dashed: !chain.kept, walk: k === 0,
      points: values.map((y, n) => ({
        x: moves[n], y,
        lines: [`chain ${k + 1} from start ${chain.start}${chain.kept ? '' : ' (left out)'}`,
          `move ${digits(moves[n], 6)}`, `${QUANTITIES[key].symbol.replace(/[⟨⟩]/g, '')} = ${digits(y)}`],
      })),
    };
  });
  const mean = model.ladder[key] ? model.ladder[key].mean[state.at] : null;
  const all = series.flatMap((one) => one.points.map((p) => p.y));
  const first = moves[0];
  drawChart(chartOf('traces'), {
    label: `${QUANTITIES[key].trace} of every chain of ${model.name} against the move`,
    x: { domain: moves.length > 1 ? [first, moves[moves.length - 1]] : [first - 1, first + 1], label: 'move' },
    y: { domain: around(mean === null ? all : [...all, mean]) || [0, 1], label: QUANTITIES[key].trace },
    series,
    bands: from[state.at] !== null && from[state.at] > first ? [{ x0: first, x1: from[state.at] }] : [],
    guides: mean === null ? [] : [{ y: mean, text: 'mean' }],
  });
  document.getElementById('traces-caption').textContent =
    `The ${own.length} chain${own.length === 1 ? '' : 's'} at T = ${model.temperature_texts[state.at]}; shaded: burn-in; `
    + 'dotted: the mean after it. Level traces that mix have forgotten their start.'
    + (averaged > 1 ? ` A point is the mean of ${averaged} draws.` : '');
}

const ensembleOf = (model) => (state.weights === 'samples'
  ? model.ensembles[state.at]
  : model.ensembles.find((one) => one.label === state.weights));

const inBlock = (one) => one.block === null || one.block === state.block;

function weightsText(model) {
  return state.weights === 'samples' ? `T = ${model.temperature_texts[state.at]}` : state.weights;
}

/* Similarity: every layer at the weights chosen, and the distribution and ladder of the layer chosen. */
function drawSimilarity(model) {
  const layers = model.layers.map((one, index) => ({ ...one, index })).filter(inBlock);
  panel('similarity').hidden = panel('similarity-ladder').hidden = !layers.length;
  if (!layers.length) return;
  const chosen = layers.find((one) => one.kind === state.layer) || layers[0];
  const groups = ensembleOf(model).similarity;
  const means = groups.flatMap((group) => layers.map(({ index }) => group.mean[index]));
  const span = around([...means, 1], 0.08) || [-1, 1];
  drawChart(document.getElementById('layers-chart'), {
    label: `Mean similarity of every layer, ${weightsText(model)}: arrow keys step through the layers, Enter chooses one`,
    height: 52 + 19 * layers.length,
    x: { domain: [span[0], Math.min(span[1], 1 + 0.03 * (1 - span[0]))], label: 'mean similarity q ± standard deviation' },
    y: { rows: layers.map(layerKind) },
    chosenRow: layers.indexOf(chosen),
    series: groups.map((group, position) => ({
      kind: 'points', cls: groupClass(group.label), symbol: position, walk: position === 0,
      points: layers.map((layer, row) => ({
        x: group.mean[layer.index], y: row, ex: group.pairs > 1 ? group.deviation[layer.index] : null,
        lines: [layer.name, `${group.label}: q = ${group.text[layer.index]}`, `${group.pairs} pairs`],
        pick: () => choose({ layer: layer.kind }),
      })),
    })),
  });
  const curves = [...model.ensembles[state.at].similarity,
    ...model.ensembles.filter((one) => one.label !== 'samples').flatMap((one) => one.similarity)];
  const current = new Set(groups.map((group) => group.label));
  drawLegend(document.getElementById('similarity-legend'), curves.map((group) => ({
    cls: groupClass(group.label), text: `${group.label} `, value: group.text[chosen.index],
  })));
  drawChart(document.getElementById('similarity-chart'), {
    label: `Distribution of the similarity of ${chosen.name}`,
    x: { domain: [chosen.low, chosen.high], label: `similarity q of ${chosen.name}` },
    y: { domain: [0, 1.08], label: 'density (scaled)' },
    series: curves.map((group) => steps(chosen, group.counts[chosen.index], group.label, 'pairs', !current.has(group.label))),
  });
  document.getElementById('similarity-caption').textContent =
    'q = w·w′/(|w||w′|) of a layer in two weight vectors (Fig. 4): draws of one chain, of different chains '
    + `(${weightsText(model)}), ES and OT of different runs. Click a layer above for its distribution.`;
  drawSimilarityLadder(model, chosen);
}

function steps(span, counts, label, what, faint) {
  const highest = Math.max(1, ...counts);
  const bin = (span.high - span.low) / counts.length;
  return {
    kind: 'steps', cls: groupClass(label), low: span.low, high: span.high, faint, walk: !faint,
    heights: counts.map((count) => count / highest),
    lines: (k) => [label, `${digits(span.low + k * bin, 3)} to ${digits(span.low + (k + 1) * bin, 3)}`, `${counts[k]} ${what}`],
  };
}

function drawSimilarityLadder(model, layer) {
  const xs = onAxis(model);
  const series = GROUPS.slice(0, 2).map((label, position) => ({
    kind: 'points', cls: groupClass(label), symbol: position, join: true, walk: position === 0,
    points: xs.map((x, at) => {
      const group = model.ensembles[at].similarity.find((one) => one.label === label);
      return {
        x, y: group ? group.mean[layer.index] : null, ey: group && group.pairs > 1 ? group.deviation[layer.index] : null,
        hollow: !model.equilibrated[at],
        lines: group && [`${layer.name}, ${temperatureText(model, at)}`, `${label}: q = ${group.text[layer.index]}`, verdictOf(model, at)],
        pick: () => choose({ at, weights: 'samples' }),
      };
    }),
  }));
  for (const one of model.ensembles.filter(({ label, similarity }) => label !== 'samples' && similarity.length)) {
    const group = one.similarity[0];
    series.push({
      kind: 'points', cls: groupClass(one.label), symbol: 2,
      points: [{
        side: one.label, y: group.mean[layer.index], ey: group.pairs > 1 ? group.deviation[layer.index] : null,
        lines: [`${layer.name}, ${one.label} of different runs`, `q = ${group.text[layer.index]}`],
        pick: () => choose({ weights: one.label }),
      }],
    });
  }
  const ends = series.flatMap((one) => one.points.flatMap((p) => (p.y === null ? [] : [p.y - (p.ey || 0), p.y + (p.ey || 0)])));
  const sides = series.flatMap((one) => one.points.map((p) => p.side)).filter(Boolean);
  drawChart(chartOf('similarity-ladder'), {
    label: `Mean similarity of ${layer.name} against temperature`,
    x: temperatureAxis([{ model }]),
    y: { domain: around(ends) || [-1, 1], label: `q of ${layer.name}` },
    side: sides,
    series,
    chosen: xs[state.at],
  });
}

function drawNorms(model) {
  const norms = model.norms.map((one, index) => ({ ...one, index })).filter(inBlock);
  panel('norms').hidden = !norms.length;
  if (!norms.length) return;
  const chosen = norms.find((one) => one.kind === state.norm) || norms[0];
  const current = ensembleOf(model);
  const curves = [model.ensembles[state.at], ...model.ensembles.filter((one) => one.label !== 'samples')];
  drawLegend(document.getElementById('norm-legend'), [
    { bare: true, text: `elements away from zero, of ${current.norms.size[chosen.index]}:` },
    ...curves.map((one) => ({
      cls: groupClass(one.label), value: one.norms.away[chosen.index],
      text: one.label === 'samples' ? `T = ${model.temperature_texts[state.at]}` : one.label,
    })),
  ]);
  const threshold = current.norms.threshold[chosen.index];
  drawChart(chartOf('norms'), {
    label: `Distribution of the elements of ${chosen.name}`,
    x: { domain: [chosen.low, chosen.high], label: `value of an element of ${chosen.name}` },
    y: { domain: [0, 1.08], label: 'density (scaled)' },
    series: curves.map((one) => steps(chosen, one.norms.counts[chosen.index], one.label, `elements of ${one.draws} vectors`, one !== current)),
    guides: threshold === null ? [] : [-threshold, threshold].filter((x) => x > chosen.low && x < chosen.high).map((x) => ({ x })),
  });
  document.getElementById('norm-caption').textContent =
    'Elements of the gain γ or bias β of a layer norm, all draws or runs together (Fig. 5). Where they fall into two '
    + 'groups, dotted lines part those at zero from those away from it; their count is the effective embedding dimension.';
}

const MAP_MODES = { contacts: 'contacts', overlay: 'overlay', predictions: 'predictions' };

function drawAttention(model) {
  const { attention } = ensembleOf(model);
  panel('attention').hidden = !attention;
  if (!attention) return;
  const block = attention.blocks[state.block];
  const rule = study.precision[state.rule];
  const values = unpack(block.map);
  const ranked = values.filter((v) => v !== null).sort((a, b) => a - b);
  const top = ranked[Math.min(ranked.length - 1, Math.floor(PERCENTILE * ranked.length))] || 1;
  const host = document.querySelector('#panel-attention .map');
  host.setAttribute('aria-label',
    `Mean attention of block ${state.block + 1} between ${residues} residues, ${weightsText(model)}: arrow keys move between pairs`);
  drawMap(host, {
    values, top, mode: state.map, separation: rule.separation,
    pairs: block.pairs[rule.separation], right: block.right[rule.key],
  });
  drawMapLegend(top, rule);
  const best = model.blocks > 1 ? ` (${attention.best === state.block ? 'the best block' : `best: block ${attention.best + 1}`})` : '';
  const scores = study.precision.map((one) => `${one.label}: ${digits(block.precision[one.key], 3)}`);
  document.getElementById('map-caption').textContent =
    `Block ${state.block + 1} of ${model.blocks}${best}, ${weightsText(model)}, start ${attention.start}, mean of `
    + `${attention.draws} weight vector${attention.draws === 1 ? '' : 's'} and of test sequences, (A + Aᵀ)/2 (Fig. 6, E2, E4). `
    + `This map scores ${scores.join('; ')}.`;
}

function drawMapLegend(top, rule) {
  const list = document.getElementById('map-legend');
  const below = {
    contacts: [{ swatch: 'contact', text: 'contact (below)' }],
    overlay: [{ swatch: 'framed', text: 'contact' }],
    predictions: [
      { swatch: 'right', text: 'right' }, { swatch: 'wrong', text: 'wrong' },
      { swatch: 'missed', text: 'contact not among them' },
    ],
  }[state.map];
  drawLegend(list, below);
  if (state.map === 'predictions') list.lastChild.append(` (below: the ${residues} highest, ${rule.label})`);
  const item = document.createElement('li');
  const ramp = document.createElement('canvas');
  ramp.width = 120;
  ramp.height = 1;
  const pen = ramp.getContext('2d');
  const heat = heatScale();
  for (let k = 0; k < 120; k++) {
    pen.fillStyle = `rgb(${heat(k / 119).map(Math.round).join(' ')})`;
    pen.fillRect(k, 0, 1, 1);
  }
  item.append('0', ramp, `${digits(top, 2)} and above: mean attention`);
  list.prepend(item);
}
