// Places labels beside points so that they cover neither each other nor points. Pure geometry in drawing units.
// Does not know: charts, scales, fonts beyond an average width.

export interface LabelledPoint {
  readonly x: number;
  readonly y: number;
  readonly label: string;
}

export interface PlacedLabel extends LabelledPoint {
  /** Where the text stands, and which end of it. */
  readonly textX: number;
  readonly textY: number;
  readonly anchor: 'start' | 'middle' | 'end';
}

interface Box {
  readonly left: number;
  readonly right: number;
  readonly top: number;
  readonly bottom: number;
}

/** Mean width of a letter over the font size, of system fonts. */
const LETTER = 0.54;
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
    ];
    for (const { dx, dy, anchor } of candidates) {
      const textX = point.x + dx;
      const textY = point.y + dy;
      const left = anchor === 'start' ? textX : anchor === 'end' ? textX - width : textX - width / 2;
      const box = { left, right: left + width, top: textY - half, bottom: textY + half };
      if (!inside(box, frame) || taken.some((other) => overlap(box, other))) continue;
      taken.push(box);
      placed.push({ ...point, textX, textY, anchor });
      break;
    }
  }
  return placed;
}

function inside(box: Box, frame: Box): boolean {
  return box.left >= frame.left && box.right <= frame.right && box.top >= frame.top && box.bottom <= frame.bottom;
}

function overlap(a: Box, b: Box): boolean {
  return a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
}
