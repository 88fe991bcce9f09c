// Pictures as Pillow resizes them, to the bit, in the page that captions in the browser.
//
// Pillow's resampling (its libImaging/Resample.c) of 8-bit pictures is separable: a horizontal and a vertical pass, each
// with weights of PRECISION bits and a result that is rounded and clipped to a byte. So a picture can be read in bands,
// of which the first pass leaves little.

const PRECISION = 32 - 8 - 2; // bits: of a byte times a weight, with room for the lobes of bicubic and lanczos

const sinc = (x) => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI));

// Pillow's filters by name: half the width of each in pixels, and its value there.
const FILTERS = {
  box: [0.5, (x) => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  hamming: [1, (x) => {
    const y = Math.abs(x) * Math.PI;
    return y === 0 ? 1 : Math.abs(x) >= 1 ? 0 : (Math.sin(y) / y) * (Math.fround(0.54) + Math.fround(0.46) * Math.cos(y)) // as floats in C;
  }],
  bicubic: [2, (x) => {
    const a = -0.5, y = Math.abs(x);
    return y < 1 ? ((a + 2) * y - (a + 3)) * y * y + 1 : y < 2 ? (((y - 5) * y + 8) * y - 4) * a : 0;
  }],
  lanczos: [3, (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

// For each of `after` pixels: the first of `before` pixels that counts, how many do, and the weight of each.
function weightsOf(before, after, name) {
  if (name === "nearest" || before === after) return nearest(before, after);
  const [half, filter] = FILTERS[name];
  const scale = before / after, wider = Math.max(1, scale), support = half * wider;
  const most = Math.ceil(support) * 2 + 1;
  const first = new Int32Array(after), count = new Int32Array(after), weights = new Int32Array(after * most);
  for (let i = 0; i < after; i++) {
    const centre = (i + 0.5) * scale;
    const from = Math.max(0, Math.trunc(centre - support + 0.5));
    const many = Math.min(before, Math.trunc(centre + support + 0.5)) - from;
    const exact = new Float64Array(many);
    let sum = 0;
    for (let j = 0; j < many; j++) sum += exact[j] = filter((j + from - centre + 0.5) * (1 / wider));
    for (let j = 0; j < many; j++) {
      const weight = (sum === 0 ? exact[j] : exact[j] / sum) * 2 ** PRECISION;
      weights[i * most + j] = Math.trunc(weight < 0 ? weight - 0.5 : weight + 0.5);
    }
    first[i] = from;
    count[i] = many;
  }
  return { first, count, weights, most };
}

function nearest(before, after) {
  const first = new Int32Array(after), count = new Int32Array(after).fill(1);
  const scale = before / after;
  for (let i = 0, x = scale * 0.5; i < after; i++, x += scale) first[i] = Math.min(before - 1, Math.floor(x));
  return { first, count, weights: new Int32Array(after).fill(2 ** PRECISION), most: 1 };
}

const HALF = 2 ** (PRECISION - 1);
const AT_ONCE = 2 ** 22; // pixels that are read together: 16 MB

// A pass along rows or columns, of red, green and blue: `along` and `across` are the distances in bytes of one pixel to
// the next in the pass's direction and in the other, in what is read and in what is written, which clips.
function pass(pixels, [along, across], into, offset, [alongInto, acrossInto], lines, { first, count, weights, most }) {
  for (let line = 0; line < lines; line++) {
    for (let i = 0; i < first.length; i++) {
      let red = HALF, green = HALF, blue = HALF;
      let at = line * across + first[i] * along;
      for (let j = i * most, end = j + count[i]; j < end; j++, at += along) {
        const weight = weights[j];
        red += pixels[at] * weight;
        green += pixels[at + 1] * weight;
        blue += pixels[at + 2] * weight;
      }
      const to = offset + line * acrossInto + i * alongInto;
      into[to] = red >> PRECISION;
      into[to + 1] = green >> PRECISION;
      into[to + 2] = blue >> PRECISION;
    }
  }
}

// (height, width) pixels to (high, wide, 3) bytes. `read` gives a part of them, RGBA.
function resized(width, height, wide, high, filter, read) {
  const columns = weightsOf(width, wide, filter), rows = weightsOf(height, high, filter);
  // As Pillow 13 chooses: the vertical pass comes first where it takes more pixels away, one counted for two.
  const verticalFirst = height > high && height - high > 2 * (width - wide);
  const whole = new Uint8ClampedArray(high * wide * 3);
  if (verticalFirst) {
    const low = new Uint8ClampedArray(high * width * 3), band = Math.max(1, Math.floor(AT_ONCE / height));
    for (let left = 0; left < width; left += band) {
      const some = Math.min(band, width - left);
      pass(read(left, 0, some, height), [some * 4, 4], low, left * 3, [width * 3, 3], some, rows);
    }
    pass(low, [3, width * 3], whole, 0, [3, wide * 3], high, columns);
  } else {
    const narrow = new Uint8ClampedArray(height * wide * 3), band = Math.max(1, Math.floor(AT_ONCE / width));
    for (let top = 0; top < height; top += band) {
      const some = Math.min(band, height - top);
      pass(read(0, top, width, some), [4, width * 4], narrow, top * wide * 3, [3, wide * 3], some, columns);
    }
    pass(narrow, [wide * 3, 3], whole, 0, [wide * 3, 3], wide, rows);
  }
  return whole;
}

/**
 * A picture in the size that a format asks for, its middle cut out where the format does so.
 *
 * @param {number} width of the picture, in pixels.
 * @param {number} height of it.
 * @param {(left: number, top: number, width: number, height: number) => Uint8ClampedArray} read gives a part, RGBA.
 * @param {object} format as `PictureFormat` in captioning/data/batch.py.
 * @returns {Uint8ClampedArray} (height, width, 3), red, green and blue.
 */
export function prepared(width, height, read, format) {
  let left = 0, top = 0;
  if (format.resize_shortest !== null) [left, top, width, height] = withoutFarEnds(width, height);
  const [wide, high] = resizedTo(width, height, format);
  const part = (x, y, some, many) => read(left + x, top + y, some, many);
  return middle(resized(width, height, wide, high, format.resample, part), wide, high, ...format.size);
}

const LONGEST_STRIP = 200; // times the shorter side, as in captioning/data/transforms.py

// Of a very long strip the middle: left, top, width, height.
function withoutFarEnds(width, height) {
  const most = LONGEST_STRIP * Math.min(width, height);
  const [left, top] = [width, height].map((side) => Math.max(0, Math.floor((side - most + 1) / 2)));
  return [left, top, width - 2 * left, height - 2 * top];
}

// [width, height] before the middle is cut out.
function resizedTo(width, height, format) {
  if (!format.resizes) return [width, height];
  if (format.resize_shortest === null) return [...(format.resize_whole ?? format.size)].reverse();
  const shortest = Math.min(width, height);
  return [width, height].map((side) => Math.trunc((format.resize_shortest * side) / shortest));
}

// The middle, of `high` rows and `wide` columns; black where there is none.
function middle(pixels, width, height, high, wide) {
  if (width === wide && height === high) return pixels;
  const left = Math.floor((width - wide) / 2), top = Math.floor((height - high) / 2);
  const into = new Uint8ClampedArray(high * wide * 3);
  const from = Math.max(0, left), to = Math.min(width, left + wide);
  for (let row = Math.max(0, top); row < Math.min(height, top + high); row++) {
    into.set(pixels.subarray((row * width + from) * 3, (row * width + to) * 3), ((row - top) * wide + from - left) * 3);
  }
  return into;
}

/**
 * The part of a picture that the model sees, in the picture's pixels: [left, top, width, height].
 *
 * The whole, or the middle where the format cuts that out; then it may reach beyond the picture.
 */
export function seenPart(width, height, format) {
  let [wide, high] = resizedTo(width, height, format);
  if (wide === format.size[1] && high === format.size[0]) return [0, 0, width, height];
  if (format.resize_shortest !== null) { // before the longer side is rounded
    [wide, high] = [width, height].map((side) => (format.resize_shortest * side) / Math.min(width, height));
  }
  wide = (format.size[1] * width) / wide;
  high = (format.size[0] * height) / high;
  return [(width - wide) / 2, (height - high) / 2, wide, high];
}

/** (height, width, 3) bytes as the encoder takes them: (3, height, width) float32 of mean 0. */
export function normalised(pixels, { mean, std }) {
  const size = pixels.length / 3, values = new Float32Array(pixels.length);
  for (let channel = 0; channel < 3; channel++) {
    const [middle, spread] = [mean[channel], std[channel]].map(Math.fround);
    for (let i = 0; i < size; i++) {
      values[channel * size + i] = Math.fround(Math.fround(pixels[i * 3 + channel] / 255) - middle) / spread;
    }
  }
  return values;
}
