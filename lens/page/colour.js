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

export const isDark = () => {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
};

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
    safe = top > 0 ? top : 1;
  return (value) => {
    const share = signed ? (value / safe + 1) / 2 : value / safe;
    return colours[Math.max(0, Math.min(STEPS - 1, Math.round((Number.isFinite(share) ? share : 0) * (STEPS - 1))))];
  };
}

export const css = ([r, g, b]) => `rgb(${r} ${g} ${b})`;

/** Returns a style with a colour as background, and the ink that is read on it: the one of higher contrast. */
export function onColour(colour) {
  const [r, g, b] = colour.map((value) => (value / 255) ** 2.2),
    light = 0.2126 * r + 0.7152 * g + 0.0722 * b;
  return { "background-color": css(colour), color: light > 0.2 ? "#0b0d10" : "#ffffff" };
}
