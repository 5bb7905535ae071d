// Places labels beside points so that they cover neither each other nor points. Pure geometry in drawing units.
// Does not know: charts, scales, fonts beyond usual widths.

export interface LabelledPoint {
  readonly x: number;
  readonly y: number;
  readonly label: string;
  /** Of the text. */
  readonly colour: string;
  /** Whether a line may lead to the label where there is no room beside the point. */
  readonly mayBeLed: boolean;
}

export interface PlacedLabel extends LabelledPoint {
  /** Where the text stands, and which end of it. */
  readonly textX: number;
  readonly textY: number;
  readonly anchor: 'start' | 'middle' | 'end';
  /** Too far from its point to be understood without a line to here. */
  readonly led: boolean;
  readonly leadX: number;
  readonly leadY: number;
}

/** Of a label against its point. */
interface Place {
  readonly dx: number;
  readonly dy: number;
  readonly anchor: 'start' | 'middle' | 'end';
}

interface Box {
  readonly left: number;
  readonly right: number;
  readonly top: number;
  readonly bottom: number;
}

/** Widths of letters over the font size, of a wide system font; all others are as wide as digits. */
const LETTERS: readonly (readonly [RegExp, number])[] = [
  [/[ijlI.,:'|]/u, 0.3],
  [/[ ftr()-]/u, 0.42],
  [/[mwMW]/u, 0.98],
  [/[A-Z]/u, 0.7],
];
const LETTER = 0.62;

export function textWidth(text: string, fontSize: number): number {
  const letters = Array.from(text, (sign) => LETTERS.find(([of]) => of.test(sign))?.[1] ?? LETTER);
  return letters.reduce((sum, width) => sum + fontSize * width, 0);
}

/** Orders that are tried. */
const TRIES = 60;
/** Places further off, each with a line to the point. */
const LED: readonly Place[] = [22, 36, 50].flatMap((far) =>
  [-far, far].flatMap((dy): Place[] => [
    { dx: 0, dy, anchor: 'middle' },
    ...[14, 32].flatMap((dx): Place[] => [
      { dx, dy, anchor: 'start' },
      { dx: -dx, dy, anchor: 'end' },
    ]),
  ]),
);
/** Room around a point. */
const POINT = 5;

/**
 * Labels each at a free place around its point, in the best of a few orders; one that finds none is left out
 * (its point keeps its tooltip, and the table has it). `obstacles` are further points to keep clear of.
 */
export function placeLabels(
  points: readonly LabelledPoint[],
  frame: Box,
  obstacles: readonly { readonly x: number; readonly y: number }[],
  fontSize: number,
): PlacedLabel[] {
  // Those that may be led stand for something that has no other name on the chart.
  const worth = (labels: readonly LabelledPoint[]): number =>
    labels.reduce((sum, { mayBeLed }) => sum + (mayBeLed ? 3 : 1), 0);
  let best: PlacedLabel[] = [];
  let hard: LabelledPoint[] = [];
  for (let tries = 0; tries < TRIES; tries++) {
    // From another point each time: what is placed late goes without more often.
    const turned = [...points.slice(tries % points.length), ...points.slice(0, tries % points.length)];
    const others = turned.filter((point) => !hard.includes(point));
    const placed = placeInOrder(hard, others, frame, obstacles, fontSize);
    if (worth(placed) > worth(best)) best = placed;
    const left = points.filter(
      (point) => !placed.some(({ x, y, label }) => x === point.x && y === point.y && label === point.label),
    );
    const missing = left.find(({ mayBeLed }) => mayBeLed) ?? left[0];
    if (missing === undefined) break;
    hard = [missing, ...hard.filter((point) => point !== missing)];
  }
  return best;
}

/** One try: `hard` points choose first, then the others a place beside them, last those that must be led. */
function placeInOrder(
  hard: readonly LabelledPoint[],
  others: readonly LabelledPoint[],
  frame: Box,
  obstacles: readonly { readonly x: number; readonly y: number }[],
  fontSize: number,
): PlacedLabel[] {
  const around = ({ x, y }: { readonly x: number; readonly y: number }): Box => ({
    left: x - POINT,
    right: x + POINT,
    top: y - POINT,
    bottom: y + POINT,
  });
  const taken: Box[] = [...hard, ...others, ...obstacles].map(around);
  const half = fontSize * 0.55;
  const gap = POINT + 2;
  const beside: readonly Place[] = [
    { dx: gap, dy: 0, anchor: 'start' },
    { dx: -gap, dy: 0, anchor: 'end' },
    { dx: 0, dy: -gap - half, anchor: 'middle' },
    { dx: 0, dy: gap + half, anchor: 'middle' },
    { dx: gap, dy: -half - 3, anchor: 'start' },
    { dx: gap, dy: half + 3, anchor: 'start' },
    { dx: -gap, dy: -half - 3, anchor: 'end' },
    { dx: -gap, dy: half + 3, anchor: 'end' },
  ];
  const place = (point: LabelledPoint, led: boolean): PlacedLabel[] => {
    const width = textWidth(point.label, fontSize);
    for (const { dx, dy, anchor } of led ? LED : beside) {
      const textX = point.x + dx;
      const textY = point.y + dy;
      const left = anchor === 'start' ? textX : anchor === 'end' ? textX - width : textX - width / 2;
      const box = { left, right: left + width, top: textY - half, bottom: textY + half };
      const lead = { x: textX, y: textY + (dy < 0 ? half : -half) };
      const line = led ? alongLine(point, lead) : [];
      if (!inside(box, frame) || [box, ...line].some((one) => taken.some((other) => overlap(one, other)))) continue;
      taken.push(box, ...line);
      return [{ ...point, textX, textY, anchor, led, leadX: lead.x, leadY: lead.y }];
    }
    return [];
  };
  const orLed = (point: LabelledPoint, near: PlacedLabel[]): PlacedLabel[] =>
    near.length > 0 || !point.mayBeLed ? near : place(point, true);
  const first = hard.flatMap((point) => orLed(point, place(point, false)));
  const near = others.map((point) => place(point, false));
  return [...first, ...others.flatMap((point, i) => orLed(point, near[i] ?? []))];
}

/** Small boxes along a line, without those in the room of the point that it starts from. */
function alongLine(
  from: { readonly x: number; readonly y: number },
  to: { readonly x: number; readonly y: number },
): Box[] {
  const length = Math.hypot(to.x - from.x, to.y - from.y);
  return Array.from({ length: Math.floor(length / 2) }, (_, i) => {
    const share = Math.min(1, (POINT * 1.8 + 2 * i) / length);
    const [x, y] = [from.x + (to.x - from.x) * share, from.y + (to.y - from.y) * share];
    return { left: x - 0.5, right: x + 0.5, top: y - 0.5, bottom: y + 0.5 };
  });
}

function inside(box: Box, frame: Box): boolean {
  return box.left >= frame.left && box.right <= frame.right && box.top >= frame.top && box.bottom <= frame.bottom;
}

function overlap(a: Box, b: Box): boolean {
  return a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
}
