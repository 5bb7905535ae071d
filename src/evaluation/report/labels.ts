// Places labels beside points so that they cover neither each other nor points. Pure geometry in drawing units.
// Does not know: charts, scales, fonts beyond an average width.

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

interface Box {
  readonly left: number;
  readonly right: number;
  readonly top: number;
  readonly bottom: number;
}

/** Mean width of a letter over the font size, of system fonts. */
const LETTER = 0.6;
/** Places further off, each with a line to the point. */
const LED = [22, 36, 50].flatMap((far) =>
  [14, 32].flatMap((dx) =>
    [-far, far].flatMap((dy) => [
      { dx, dy, anchor: 'start' as const },
      { dx: -dx, dy, anchor: 'end' as const },
    ]),
  ),
);
/** Room around a point. */
const POINT = 5;

/**
 * Labels in the order of the points, each at the first free place around its point; one that finds none is left out
 * (its point keeps its tooltip, and the table has it). `obstacles` are further points to keep clear of.
 */
export function placeLabels(
  points: readonly LabelledPoint[],
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
  const taken: Box[] = [...points, ...obstacles].map(around);
  const placed: PlacedLabel[] = [];
  for (const point of points) {
    const width = point.label.length * fontSize * LETTER;
    const half = fontSize * 0.6;
    const gap = POINT + 2;
    const candidates = [
      { dx: gap, dy: 0, anchor: 'start' as const },
      { dx: -gap, dy: 0, anchor: 'end' as const },
      { dx: 0, dy: -gap - half, anchor: 'middle' as const },
      { dx: 0, dy: gap + half, anchor: 'middle' as const },
      { dx: gap, dy: -half - 3, anchor: 'start' as const },
      { dx: gap, dy: half + 3, anchor: 'start' as const },
      { dx: -gap, dy: -half - 3, anchor: 'end' as const },
      { dx: -gap, dy: half + 3, anchor: 'end' as const },
      ...(point.mayBeLed ? LED : []),
    ];
    for (const { dx, dy, anchor } of candidates) {
      const textX = point.x + dx;
      const textY = point.y + dy;
      const left = anchor === 'start' ? textX : anchor === 'end' ? textX - width : textX - width / 2;
      const box = { left, right: left + width, top: textY - half, bottom: textY + half };
      const led = Math.abs(dy) > 20;
      const lead = { x: textX, y: textY + (dy < 0 ? half : -half) };
      const line = led ? alongLine(point, lead) : [];
      if (!inside(box, frame) || [box, ...line].some((one) => taken.some((other) => overlap(one, other)))) continue;
      taken.push(box, ...line);
      placed.push({ ...point, textX, textY, anchor, led, leadX: lead.x, leadY: lead.y });
      break;
    }
  }
  return placed;
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
