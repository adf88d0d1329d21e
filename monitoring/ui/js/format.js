// Numbers, times and names for people. Units: seconds, bytes.

const NONE = "–";

/** Whole numbers with thin separators, fractions with about `digits` significant digits. */
export function number(value, digits = 4) {
  if (typeof value !== "number" || !Number.isFinite(value)) return NONE;
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  const size = Math.abs(value);
  if (size !== 0 && size < 1e-3) return value.toExponential(1);
  return value.toLocaleString("en-US", { maximumSignificantDigits: digits });
}

/** A loss: always four significant digits, so that a column of them stands still. */
export function loss(value) {
  if (typeof value !== "number" || !Number.isFinite(value)) return NONE;
  return Math.abs(value) >= 1e-3 && Math.abs(value) < 1e4 ? value.toPrecision(4) : number(value);
}

/** A p-value: never a bare zero. */
export function pValue(value) {
  if (typeof value !== "number") return NONE;
  return value < 0.0001 ? "< 0.0001" : value.toFixed(value < 0.01 ? 4 : 3);
}

/** "2 h 05 min", "3 min 20 s", "41 s". */
export function duration(seconds) {
  if (typeof seconds !== "number" || !Number.isFinite(seconds)) return NONE;
  const whole = Math.max(0, Math.round(seconds));
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60), whole % 60];
  if (h >= 48) return `${Math.floor(h / 24)} d ${h % 24} h`;
  if (h) return `${h} h ${String(m).padStart(2, "0")} min`;
  return m ? `${m} min ${String(s).padStart(2, "0")} s` : `${s} s`;
}

/** Coarse age for lists, so that they do not change at every poll. */
export function ago(stamp, now) {
  const age = (now - Date.parse(stamp)) / 1000;
  if (!Number.isFinite(age)) return "";
  if (age < 60) return "just now";
  if (age < 3600) return `${Math.floor(age / 60)} min ago`;
  if (age < 86400) return `${Math.floor(age / 3600)} h ago`;
  return `${Math.floor(age / 86400)} d ago`;
}

/** Local time of day, with the date when it was another day. */
export function clock(stamp) {
  const when = new Date(stamp);
  if (Number.isNaN(when.getTime())) return "";
  const day = when.toDateString() === new Date().toDateString() ? "" : `${when.toLocaleDateString("en-CA")} `;
  return day + when.toLocaleTimeString("en-GB");
}

export function bytes(value) {
  if (typeof value !== "number") return NONE;
  const units = ["B", "KB", "MB", "GB", "TB"];
  let size = value;
  let unit = 0;
  while (size >= 1000 && unit < units.length - 1) { size /= 1000; unit += 1; }
  return `${size >= 100 || unit === 0 ? Math.round(size) : size.toFixed(1)} ${units[unit]}`;
}

/** A word for a shell: quoted when it holds anything that a shell would act on. */
export function shellWord(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

export function plural(count, one, many = `${one}s`) {
  return `${number(count)} ${count === 1 ? one : many}`;
}
