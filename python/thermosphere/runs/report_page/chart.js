/*
 * A chart in its host element: axes, series, guides, and an answer to pointer and arrow keys.
 *
 * spec.x, spec.y: {domain, label, log, rows}; rows are the names of a categorical y axis, from the top.
 * spec.side: names of a strip left of the axes, for weights without a temperature.
 * spec.series: {kind: 'points', symbol, join, points: [{x | side, y, ex | ey, hollow, half, dot, lines, pick}]}
 *              {kind: 'line', points: [{x, y, lines}]}  {kind: 'steps', low, high, heights, lines}
 *              with a colour class `cls`, `faint`, `walk` (arrow keys step through it).
 * spec.empty: words in place of what is not known.
 * spec.guides: {x | y, text, cls};  spec.bands: {x0, x1};  spec.chosen: x of the temperature chosen.
 */

const NAMESPACE = document.querySelector('#explore svg').namespaceURI;
const REACH = 40; // pixels within which a mark answers the pointer

function svg(parent, tag, attributes, text) {
  const element = document.createElementNS(NAMESPACE, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

/* One symbol a series, so that they differ without colour too. */
function symbolPath(symbol, x, y, r) {
  const polygon = (points) =>
    'M' + points.map(([a, b]) => `${x + a * r},${y + b * r}`).join('L') + 'Z';
  switch (symbol) {
    case 1:
      return polygon([
        [-0.9, -0.9],
        [0.9, -0.9],
        [0.9, 0.9],
        [-0.9, 0.9],
      ]);
    case 2:
      return polygon([
        [0, -1.25],
        [1.25, 0],
        [0, 1.25],
        [-1.25, 0],
      ]);
    case 3:
      return polygon([
        [0, -1.2],
        [1.15, 0.85],
        [-1.15, 0.85],
      ]);
    case 4:
      return polygon([
        [0, 1.2],
        [1.15, -0.85],
        [-1.15, -0.85],
      ]);
    default:
      return `M${x - r},${y}a${r},${r} 0 1 0 ${2 * r},0a${r},${r} 0 1 0 ${-2 * r},0Z`;
  }
}

function drawChart(host, spec) {
  const width = host.clientWidth;
  const height = spec.height || host.clientHeight;
  const side = spec.side && spec.side.length ? 10 + 34 * spec.side.length : 0;
  const yTicks = spec.empty
    ? []
    : spec.y.rows
      ? spec.y.rows.map((name, row) => [row, name])
      : linearTicks(...spec.y.domain, Math.max(2, height / 55));
  const longest = Math.max(0, ...yTicks.map(([, text]) => text.length));
  const left = 14 + Math.min(width * 0.45, 6.7 * longest);
  const box = {
    left: left + side,
    right: width - 12,
    top: spec.y.label ? 28 : 8,
    bottom: height - 40,
  };
  const scale = (domain, log, from, to) => {
    const f = log ? Math.log : (v) => v;
    return (v) => from + ((f(v) - f(domain[0])) / (f(domain[1]) - f(domain[0]))) * (to - from);
  };
  const x = scale(spec.x.domain, spec.x.log, box.left, box.right);
  const y = spec.y.rows
    ? (row) => box.top + ((row + 0.5) / spec.y.rows.length) * (box.bottom - box.top)
    : scale(spec.y.domain, false, box.bottom, box.top);
  const sideX = (name) => left + side * ((spec.side.indexOf(name) + 0.5) / spec.side.length) - 4;
  const within = (v, a, b) => Math.min(Math.max(v, Math.min(a, b)), Math.max(a, b));

  const picture = document.createElementNS(NAMESPACE, 'svg');
  picture.setAttribute('height', height);
  picture.setAttribute('viewBox', `0 0 ${width} ${height}`);
  picture.setAttribute('aria-hidden', 'true');
  const targets = [];

  for (const band of spec.bands || []) {
    const [x0, x1] = [x(band.x0), x(band.x1)].map((v) => within(v, box.left, box.right));
    svg(picture, 'rect', {
      x: x0,
      y: box.top,
      width: Math.max(0, x1 - x0),
      height: box.bottom - box.top,
      class: 'burn-in',
    });
  }
  if (spec.chosenRow >= 0) {
    const step = (box.bottom - box.top) / spec.y.rows.length;
    svg(picture, 'rect', {
      x: 0,
      y: y(spec.chosenRow) - step / 2,
      width,
      height: step,
      class: 'row-chosen',
    });
  }
  for (const [value, text] of yTicks) {
    const at = y(value);
    svg(picture, 'line', { x1: left, x2: box.right, y1: at, y2: at, class: 'grid' });
    svg(picture, 'text', { x: left - 6, y: at + 4, 'text-anchor': 'end' }, text);
  }
  const xTicks = spec.x.log
    ? logTicks(...spec.x.domain, box.right - box.left)
    : linearTicks(...spec.x.domain, (box.right - box.left) / 75);
  svg(picture, 'line', {
    x1: box.left,
    x2: box.right,
    y1: box.bottom,
    y2: box.bottom,
    class: 'axis',
  });
  for (const [value, text] of xTicks) {
    const at = x(value);
    svg(picture, 'line', { x1: at, x2: at, y1: box.bottom, y2: box.bottom + 4, class: 'axis' });
    svg(picture, 'text', { x: at, y: box.bottom + 17, 'text-anchor': 'middle' }, text);
  }
  svg(
    picture,
    'text',
    { x: (box.left + box.right) / 2, y: height - 5, 'text-anchor': 'middle' },
    spec.x.label,
  );
  if (spec.y.label) svg(picture, 'text', { x: 0, y: 12 }, spec.y.label);
  for (const name of spec.side || []) {
    svg(picture, 'text', { x: sideX(name), y: box.bottom + 17, 'text-anchor': 'middle' }, name);
  }
  if (spec.chosen !== undefined && spec.chosen !== null) {
    svg(picture, 'line', {
      x1: x(spec.chosen),
      x2: x(spec.chosen),
      y1: box.top,
      y2: box.bottom,
      class: 'chosen',
    });
  }
  for (const guide of spec.guides || []) {
    const vertical = guide.x !== undefined;
    const ends = vertical
      ? { x1: x(guide.x), x2: x(guide.x), y1: box.top, y2: box.bottom }
      : { x1: left, x2: box.right, y1: y(guide.y), y2: y(guide.y) };
    svg(picture, 'line', { ...ends, class: `guide ${guide.cls || ''}` });
  }

  const place = (point) => [
    point.side ? sideX(point.side) + (point.shift || 0) : x(point.x),
    y(point.y),
  ];
  for (const one of spec.series) {
    const group = svg(picture, 'g', { class: `${one.cls || ''} ${one.faint ? 'faint' : ''}` });
    if (one.kind === 'steps') {
      drawSteps(group, one, x, y, targets);
      continue;
    }
    const shown = one.points.filter((p) => p.y !== null && (p.side || p.x !== null));
    if (one.kind === 'line' || one.join) {
      let path = '';
      let pen = 'M';
      for (const point of one.points) {
        if (point.side) continue;
        if (point.y === null || point.x === null) {
          pen = 'M';
          continue;
        }
        const [px, py] = place(point);
        if (one.join && py < box.top - 1) {
          pen = 'M';
          continue;
        }
        path += `${pen}${px.toFixed(1)},${within(py, box.top, box.bottom).toFixed(1)}`;
        pen = 'L';
      }
      if (path)
        svg(group, 'path', {
          d: path,
          class: one.join ? 'join' : `curve ${one.dashed ? 'dashed' : ''}`,
        });
    }
    for (const point of shown) {
      let [px, py] = place(point);
      const beyond = py < box.top - 1;
      if (beyond) py = box.top;
      if (one.kind === 'points' || shown.length === 1) drawPoint(group, one, point, px, py, beyond);
      if (point.lines)
        targets.push({
          px,
          py,
          lines: point.lines,
          pick: point.pick,
          walk: one.walk,
          faint: one.faint,
        });
    }
  }
  function drawPoint(group, one, point, px, py, beyond) {
    if (point.ey && !beyond) {
      const [low, high] = [y(point.y - point.ey), y(point.y + point.ey)].map((v) =>
        within(v, box.top, box.bottom),
      );
      svg(group, 'path', {
        d: `M${px - 3},${low}h6M${px},${low}V${high}M${px - 3},${high}h6`,
        class: 'bars',
      });
    }
    if (point.ex) {
      const [low, high] = [x(point.x - point.ex), x(point.x + point.ex)].map((v) =>
        within(v, box.left, box.right),
      );
      svg(group, 'path', { d: `M${low},${py}H${high}`, class: 'bars' });
    }
    const kind = `mark ${point.hollow ? 'hollow' : ''} ${point.half ? 'half' : ''} ${point.dot ? 'dot' : ''}`;
    svg(group, 'path', {
      d: symbolPath(beyond ? 3 : one.symbol, px, py, point.dot ? 2.6 : 4),
      class: kind,
    });
  }

  for (const guide of (spec.guides || []).filter((one) => one.text)) {
    const vertical = guide.x !== undefined;
    const at = vertical ? x(guide.x) : y(guide.y);
    const late = vertical && at > box.right - 40;
    const spot = vertical
      ? { x: at + (late ? -4 : 4), y: box.top + 9 }
      : { x: box.right, y: at - 4 };
    svg(
      picture,
      'text',
      { ...spot, 'text-anchor': !vertical || late ? 'end' : 'start' },
      guide.text,
    );
  }
  if (spec.empty) {
    const middle = {
      x: (box.left + box.right) / 2,
      y: (box.top + box.bottom) / 2,
      'text-anchor': 'middle',
      class: 'empty',
    };
    svg(picture, 'text', middle, spec.empty);
  }
  host.replaceChildren(picture);
  host.tabIndex = 0;
  host.setAttribute('role', 'application');
  host.setAttribute('aria-label', spec.label);
  answer(host, picture, targets);
}

function drawSteps(group, one, x, y, targets) {
  const bin = (one.high - one.low) / one.heights.length;
  let path = `M${x(one.low)},${y(0)}`;
  one.heights.forEach((height, k) => {
    const [from, to] = [x(one.low + k * bin), x(one.low + (k + 1) * bin)];
    path += `L${from.toFixed(1)},${y(height).toFixed(1)}L${to.toFixed(1)},${y(height).toFixed(1)}`;
    if (height > 0)
      targets.push({
        px: (from + to) / 2,
        py: y(height),
        lines: one.lines(k),
        walk: one.walk,
        faint: one.faint,
      });
  });
  path += `L${x(one.high)},${y(0)}`;
  svg(group, 'path', { d: path + 'Z', class: 'area' });
  svg(group, 'path', { d: path, class: `curve ${one.dashed ? 'dashed' : ''}` });
}

/* Pointer: the nearest target within reach. Arrow keys: one target of the series walked to the next. */
function answer(host, picture, targets) {
  let active = null;
  const show = (target, spoken) => {
    if (active) active.ring.remove();
    active = null;
    if (!target) return hideTip();
    const ring = svg(picture, 'circle', { cx: target.px, cy: target.py, r: 7, class: 'ring' });
    active = { target, ring };
    const corner = host.getBoundingClientRect();
    return showTip(target.lines, corner.left + target.px, corner.top + target.py, spoken);
  };
  const nearest = (event) => {
    const corner = host.getBoundingClientRect();
    let best = null;
    let least = REACH * REACH;
    for (const target of targets) {
      const aside = target.faint ? 5 : 0; // where two marks overlap, the model chosen answers
      const distance =
        (corner.left + target.px - event.clientX) ** 2 +
        (corner.top + target.py - event.clientY) ** 2 +
        aside ** 2;
      if (distance < least) [best, least] = [target, distance];
    }
    return best;
  };
  host.onpointermove = (event) => show(nearest(event), false);
  host.onpointerleave = () => show(null, false);
  host.onblur = () => show(null, false);
  host.onclick = (event) => {
    const target = nearest(event);
    if (target && target.pick) target.pick();
    else show(target, false);
  };
  host.onkeydown = (event) => {
    const walked = targets.filter((target) => target.walk);
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step && walked.length) {
      const at = active ? walked.indexOf(active.target) : -1;
      const next =
        at < 0
          ? step > 0
            ? 0
            : walked.length - 1
          : Math.min(Math.max(at + step, 0), walked.length - 1);
      show(walked[next], true);
      event.preventDefault();
    } else if ((event.key === 'Enter' || event.key === ' ') && active && active.target.pick) {
      active.target.pick();
      event.preventDefault();
    } else if (event.key === 'Escape') {
      show(null, false);
    }
  };
}
