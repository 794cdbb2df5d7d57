// One scale for unsigned numbers and one for signed ones, in a light and a dark form: blue and orange, which people with
// any kind of colour vision tell apart, and lightness that rises or falls all the way.

const SCALES = {
  light: {
    unsigned: ["#ffffff", "#dbe8f6", "#9cc3e6", "#4b8cc9", "#1b5a9c", "#0a2f5c"],
    signed: ["#7f3408", "#c8631b", "#f0b184", "#ffffff", "#9cc3e6", "#2f74b8", "#0a3a70"],
  },
  dark: {
    unsigned: ["#12161d", "#16304d", "#1f5790", "#3d8bd4", "#86c1f5", "#e6f4ff"],
    signed: ["#ffc79a", "#ee8a3e", "#7d4316", "#12161d", "#1d4d80", "#4b9ae3", "#b4dcff"],
  },
};
const STEPS = 256;
const tables = new Map();

// The style of the dark colours holds while its condition does: at first what the system wants, then what was chosen.
const darkStyle = document.getElementById("dark");

export const isDark = () => matchMedia(darkStyle.media).matches;

export function setDark(dark) {
  darkStyle.media = dark ? "all" : "not all";
}

/** Returns the 256 colours of a scale, as [r, g, b]. */
function table(name) {
  const key = `${isDark()} ${name}`;
  if (!tables.has(key)) tables.set(key, interpolated(SCALES[isDark() ? "dark" : "light"][name]));
  return tables.get(key);
}

function interpolated(stops) {
  const colours = stops.map((stop) => [1, 3, 5].map((at) => parseInt(stop.slice(at, at + 2), 16)));
  return Array.from({ length: STEPS }, (_, step) => {
    const place = (step / (STEPS - 1)) * (colours.length - 1),
      low = Math.min(Math.floor(place), colours.length - 2);
    return colours[low].map((value, i) => Math.round(value + (place - low) * (colours[low + 1][i] - value)));
  });
}

/** Returns value -> [r, g, b]: 0 … top on the unsigned scale, -top … top on the signed one. */
export function scale(top, signed = false) {
  const colours = table(signed ? "signed" : "unsigned"),
    step = stepsOf(top, signed);
  return (value) => colours[step(value)];
}

/** Returns value -> place in a table of 256 colours; what is no number is 0. */
function stepsOf(top, signed) {
  const last = STEPS - 1,
    factor = (signed ? last / 2 : last) / (top > 0 ? top : 1),
    step = new Uint8ClampedArray(1); // rounds, and keeps 0 … 255
  return (value) => {
    step[0] = signed ? last / 2 + value * factor : value * factor;
    return step[0];
  };
}

/** Writes the colours of values, or of their square roots, into the pixels of an ImageData, one number each. */
export function paint(pixels, values, top, signed, root) {
  const colours = table(signed ? "signed" : "unsigned"),
    packed = new Uint32Array(Uint8Array.from(colours.flatMap((rgb) => [...rgb, 255])).buffer),
    step = stepsOf(root ? Math.sqrt(top) : top, signed);
  for (let i = 0; i < pixels.length; i++) pixels[i] = packed[step(root ? Math.sqrt(values[i]) : values[i])];
}

export const css = ([r, g, b]) => `rgb(${r} ${g} ${b})`;

const styles = new WeakMap(); // of each colour of a scale: its style

/** Returns a style with a colour as background, and the ink that is read on it: the one of higher contrast. */
export function onColour(colour) {
  if (!styles.has(colour)) {
    const [r, g, b] = colour.map((value) => (value / 255) ** 2.2),
      light = 0.2126 * r + 0.7152 * g + 0.0722 * b;
    styles.set(colour, { "background-color": css(colour), color: light > 0.2 ? "#0b0d10" : "#ffffff" });
  }
  return styles.get(colour);
}
