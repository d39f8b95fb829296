"use strict";
// t-SNE of the page's points (van der Maaten & Hinton 2008, JMLR 9:2579; equations are theirs),
// computed in the page when it is asked for. P points; matrices are P x P, row by row. Exact: a
// step visits every pair once.

const TSNE = { perplexity: 30, steps: 400, exaggeration: 12, exaggerated: 100, seconds: 20 };

/** Squared distances of the rows of P x D numbers. */
function squaredDistances(rows, count) {
  const size = rows.length / count;
  const distances = new Float32Array(count * count);
  for (let i = 0; i < count; i++) {
    for (let j = 0; j < i; j++) {
      let sum = 0;
      for (let d = 0; d < size; d++) sum += (rows[i * size + d] - rows[j * size + d]) ** 2;
      distances[i * count + j] = sum;
      distances[j * count + i] = sum;
    }
  }
  return distances;
}

/**
 * p(j|i), eq. 1, at the precision where its perplexity is as asked for; p(i|i) = 0.
 * ``row`` has the squared distances from point i.
 */
function neighbourhood(row, i, perplexity) {
  const near = row.reduce((least, d, j) => (j === i ? least : Math.min(least, d)), Infinity);
  const p = new Float32Array(row.length);
  let low = 0;
  let high = Infinity;
  let precision = 1 / (row.reduce((sum, d) => sum + d, 0) / row.length || 1);
  for (let k = 0; k < 60; k++) {
    let total = 0;
    let mean = 0; // of the distance beyond the nearest
    for (let j = 0; j < row.length; j++) {
      p[j] = j === i ? 0 : Math.exp(-precision * (row[j] - near));
      total += p[j];
      mean += p[j] * (row[j] - near);
    }
    const entropy = Math.log(total) + (precision * mean) / total;
    for (let j = 0; j < row.length; j++) p[j] /= total;
    if (Math.abs(entropy - Math.log(perplexity)) < 1e-5) break;
    if (entropy > Math.log(perplexity)) low = precision;
    else high = precision;
    precision = high === Infinity ? 2 * precision : (low + high) / 2;
  }
  return p;
}

/** p_ij = (p(j|i) + p(i|j)) / 2P of rows of numbers. */
function affinities(rows, count, perplexity) {
  const distances = squaredDistances(rows, count);
  const p = new Float32Array(count * count);
  for (let i = 0; i < count; i++) {
    const row = distances.subarray(i * count, (i + 1) * count);
    const near = neighbourhood(row, i, Math.min(perplexity, (count - 1) / 3));
    for (let j = 0; j < count; j++) {
      p[i * count + j] += near[j] / (2 * count);
      p[j * count + i] += near[j] / (2 * count);
    }
  }
  return p;
}

/** The gradient of KL(P ‖ Q) with respect to the points y, P x 2 (eq. 5); P times ``factor``. */
function tsneGradient(p, y, factor) {
  const count = y.length / 2;
  let total = 0; // of 1 / (1 + |y_i - y_j|²) over all pairs, the normaliser of Q (eq. 4)
  for (let i = 0; i < count; i++) {
    for (let j = 0; j < i; j++) {
      const dx = y[2 * i] - y[2 * j];
      const dy = y[2 * i + 1] - y[2 * j + 1];
      total += 2 / (1 + dx * dx + dy * dy);
    }
  }
  const gradient = new Float64Array(y.length);
  for (let i = 0; i < count; i++) {
    for (let j = 0; j < i; j++) {
      const dx = y[2 * i] - y[2 * j];
      const dy = y[2 * i + 1] - y[2 * j + 1];
      const near = 1 / (1 + dx * dx + dy * dy);
      const pull = 4 * (factor * p[i * count + j] - near / total) * near;
      gradient[2 * i] += pull * dx;
      gradient[2 * i + 1] += pull * dy;
      gradient[2 * j] -= pull * dx;
      gradient[2 * j + 1] -= pull * dy;
    }
  }
  return gradient;
}

/** The state of a descent that begins with small copies of the points x, y. */
function startTsne(rows, { x, y }) {
  const count = x.length;
  const scale = 1e-4 / (Math.sqrt(x.reduce((sum, v) => sum + v * v, 0) / count) || 1);
  const points = new Float64Array(2 * count);
  for (let i = 0; i < count; i++) {
    points[2 * i] = scale * x[i];
    points[2 * i + 1] = scale * y[i];
  }
  const gains = new Float64Array(2 * count).fill(1);
  const p = affinities(rows, count, TSNE.perplexity);
  return { p, points, gains, velocity: new Float64Array(2 * count), step: 0 };
}

/** One step with momentum and a gain for each number, at the rate of Belkina et al. 2019. */
function stepTsne(state) {
  const { points, gains, velocity } = state;
  const early = state.step < TSNE.exaggerated;
  const gradient = tsneGradient(state.p, points, early ? TSNE.exaggeration : 1);
  const rate = Math.max(points.length / 2 / TSNE.exaggeration / 4, 50);
  const momentum = early ? 0.5 : 0.8;
  for (let i = 0; i < points.length; i++) {
    const turned = gradient[i] * velocity[i] < 0; // the velocity still goes downhill
    gains[i] = turned ? gains[i] + 0.2 : Math.max(0.8 * gains[i], 0.01);
    velocity[i] = momentum * velocity[i] - rate * gains[i] * gradient[i];
    points[i] += velocity[i];
  }
  state.step += 1;
}

