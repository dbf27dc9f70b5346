/* Panels of the weights themselves: similarity (Fig. 4), norms (Fig. 5), attention (Fig. 6). */

const ensembleOf = (model) =>
  state.weights === 'samples'
    ? model.ensembles[state.at]
    : model.ensembles.find((one) => one.label === state.weights);

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
  const ends = groups.flatMap((group) =>
    layers.flatMap(({ index }) => {
      const [mean, deviation] = [group.mean[index], group.pairs > 1 ? group.deviation[index] : 0];
      return mean === null ? [] : [mean - deviation, mean + deviation];
    }),
  );
  const span = around([...ends, 1], 0.04);
  document.getElementById('similarity-caption').textContent =
    'q = w·w′/(|w||w′|) of a layer in two weight vectors (Fig. 4): draws of one chain, of different chains ' +
    `(${weightsText(model)}), ES and OT of different runs. Click a layer above for its distribution.`;
  drawChart(document.getElementById('layers-chart'), {
    label: `Mean similarity of every layer, ${weightsText(model)}: arrow keys step through the layers, Enter chooses one`,
    height: 52 + 19 * layers.length,
    x: { domain: span, label: 'mean similarity q ± standard deviation' },
    y: { rows: layers.map(layerKind) },
    chosenRow: layers.indexOf(chosen),
    series: groups.map((group, position) => ({
      kind: 'points',
      cls: groupClass(group.label),
      symbol: position,
      walk: position === 0,
      points: layers.map((layer, row) => ({
        x: group.mean[layer.index],
        y: row,
        ex: group.pairs > 1 ? group.deviation[layer.index] : null,
        lines: [
          layer.name,
          `${group.label}: q = ${group.text[layer.index]}`,
          `${group.pairs} pairs`,
        ],
        pick: () => choose({ layer: layer.kind }),
      })),
    })),
  });
  const curves = [
    ...model.ensembles[state.at].similarity,
    ...model.ensembles.filter((one) => one.label !== 'samples').flatMap((one) => one.similarity),
  ];
  const current = new Set(groups.map((group) => group.label));
  drawLegend(
    document.getElementById('similarity-legend'),
    curves.map((group) => ({
      cls: groupClass(group.label),
      text: `${group.label} `,
      value: group.text[chosen.index],
    })),
  );
  drawChart(document.getElementById('similarity-chart'), {
    label: `Distribution of the similarity of ${chosen.name}`,
    x: { domain: [chosen.low, chosen.high], label: `similarity q of ${chosen.name}` },
    y: { domain: [0, 1.08], label: 'density (scaled)' },
    series: curves.map((group) =>
      steps(chosen, group.counts[chosen.index], group.label, 'pairs', !current.has(group.label)),
    ),
  });
  drawSimilarityLadder(model, chosen);
}

function steps(span, counts, label, what, faint) {
  const highest = Math.max(1, ...counts);
  const bin = (span.high - span.low) / counts.length;
  return {
    kind: 'steps',
    cls: groupClass(label),
    low: span.low,
    high: span.high,
    faint,
    walk: !faint,
    heights: counts.map((count) => count / highest),
    lines: (k) => [
      label,
      `${digits(span.low + k * bin, 3)} to ${digits(span.low + (k + 1) * bin, 3)}`,
      `${counts[k]} ${what}`,
    ],
  };
}

function drawSimilarityLadder(model, layer) {
  const xs = onAxis(model);
  const series = GROUPS.slice(0, 2).map((label, position) => ({
    kind: 'points',
    cls: groupClass(label),
    symbol: position,
    join: true,
    walk: position === 0,
    points: xs.map((x, at) => {
      const group = model.ensembles[at].similarity.find((one) => one.label === label);
      return {
        x,
        y: group ? group.mean[layer.index] : null,
        ey: group && group.pairs > 1 ? group.deviation[layer.index] : null,
        hollow: !model.settled[at],
        half: apart(model, at),
        lines: group && [
          `${layer.name}, ${temperatureText(model, at)}`,
          `${label}: q = ${group.text[layer.index]}`,
          verdictOf(model, at),
        ],
        pick: () => choose({ at, weights: 'samples' }),
      };
    }),
  }));
  for (const one of model.ensembles.filter(
    ({ label, similarity }) => label !== 'samples' && similarity.length,
  )) {
    const group = one.similarity[0];
    series.push({
      kind: 'points',
      cls: groupClass(one.label),
      symbol: 2,
      points: [
        {
          side: one.label,
          y: group.mean[layer.index],
          ey: group.pairs > 1 ? group.deviation[layer.index] : null,
          lines: [
            `${layer.name}, ${one.label} of different runs`,
            `q = ${group.text[layer.index]}`,
          ],
          pick: () => choose({ weights: one.label }),
        },
      ],
    });
  }
  const ends = series.flatMap((one) =>
    one.points.flatMap((p) => (p.y === null ? [] : [p.y - (p.ey || 0), p.y + (p.ey || 0)])),
  );
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
  const curves = [
    model.ensembles[state.at],
    ...model.ensembles.filter((one) => one.label !== 'samples'),
  ];
  drawLegend(document.getElementById('norm-legend'), [
    { bare: true, text: `elements away from zero, of ${current.norms.size[chosen.index]}:` },
    ...curves.map((one) => ({
      cls: groupClass(one.label),
      value: one.norms.away[chosen.index],
      text: one.label === 'samples' ? `T = ${model.temperature_texts[state.at]}` : one.label,
    })),
  ]);
  const threshold = current.norms.threshold[chosen.index];
  document.getElementById('norm-caption').textContent =
    'Elements of the gain γ or bias β of a layer norm, all draws or runs together (Fig. 5). Where they fall into two ' +
    'groups, dotted lines part those at zero from those away from it; their count is the effective embedding dimension.';
  drawChart(chartOf('norms'), {
    label: `Distribution of the elements of ${chosen.name}`,
    x: { domain: [chosen.low, chosen.high], label: `value of an element of ${chosen.name}` },
    y: { domain: [0, 1.08], label: 'density (scaled)' },
    series: curves.map((one) =>
      steps(
        chosen,
        one.norms.counts[chosen.index],
        one.label,
        `elements of ${one.draws} vectors`,
        one !== current,
      ),
    ),
    guides:
      threshold === null
        ? []
        : [-threshold, threshold]
            .filter((x) => x > chosen.low && x < chosen.high)
            .map((x) => ({ x })),
  });
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
  host.setAttribute(
    'aria-label',
    `Mean attention of block ${state.block + 1} between ${residues} residues, ${weightsText(model)}: arrow keys move between pairs`,
  );
  drawMap(host, {
    values,
    top,
    mode: state.map,
    separation: rule.separation,
    pairs: block.pairs[rule.separation],
    right: block.right[rule.key],
  });
  drawMapLegend(top, rule);
  const best =
    model.blocks > 1
      ? ` (${attention.best === state.block ? 'the best block' : `best: block ${attention.best + 1}`})`
      : '';
  const scores = study.precision.map(
    (one) => `${one.label}: ${digits(block.precision[one.key], 3)}`,
  );
  document.getElementById('map-caption').textContent =
    `Block ${state.block + 1} of ${model.blocks}${best}, ${weightsText(model)}, start ${attention.start}, mean of ` +
    `${attention.draws} weight vector${attention.draws === 1 ? '' : 's'} and of test sequences, (A + Aᵀ)/2 (Fig. 6, E2, E4). ` +
    `This map scores ${scores.join('; ')}.`;
}

function drawMapLegend(top, rule) {
  const list = document.getElementById('map-legend');
  const below = {
    contacts: [{ swatch: 'contact', text: 'contact (below)' }],
    overlay: [{ swatch: 'framed', text: 'contact' }],
    predictions: [
      { swatch: 'right', text: 'right' },
      { swatch: 'wrong', text: 'wrong' },
      { swatch: 'missed', text: 'contact not among them' },
    ],
  }[state.map];
  drawLegend(list, below);
  if (state.map === 'predictions')
    list.lastChild.append(` (below: the ${residues} highest, ${rule.label})`);
  const item = document.createElement('li');
  const ramp = document.createElement('canvas');
  ramp.width = 120;
  ramp.height = 1;
  const pen = ramp.getContext('2d');
  const heat = heatScale();
  for (let k = 0; k < 120; k++) {
    pen.fillStyle = `rgb(${heat(k / 119)
      .map(Math.round)
      .join(' ')})`;
    pen.fillRect(k, 0, 1, 1);
  }
  item.append('0', ramp, `${digits(top, 2)} and above: mean attention`);
  list.prepend(item);
}
