// The look of a report: type, spacing, colours for light and dark. Colours of charts are variables here, chosen so that
// neighbours differ in lightness too. Does not know: charts, data.

export const PAGE_STYLE = `
:root {
  color-scheme: light dark;
  --paper: #fdfdfb; --ink: #1d2329; --soft: #5a636d; --faint: #c3c8cd; --rule: #e3e5e4; --band: rgb(120 130 140 / .16);
  --key: #1b62b5; --value: #c2570c; --third: #2d7a4b; --fourth: #8a4fb0; --rival: #6f7782; --bad: #a4262c;
  --heat-0: #eef3f8; --heat-1: #cfdfee; --heat-2: #a6c5e1; --heat-3: #74a5d0; --heat-4: #447fb8; --heat-5: #235a94; --heat-6: #0e3564;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181c; --ink: #e4e7e9; --soft: #a0a9b2; --faint: #4b545d; --rule: #2a3138; --band: rgb(170 180 190 / .16);
    --key: #6fb1ff; --value: #ff9d57; --third: #6fcf97; --fourth: #cfa3ee; --rival: #98a2ad; --bad: #ff8a8a;
    --heat-0: #1c2733; --heat-1: #20384f; --heat-2: #25527a; --heat-3: #2f72a8; --heat-4: #5097cf; --heat-5: #87bfe8; --heat-6: #d0e8fa;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1100px; margin: 0 auto; padding: 2.5rem 1rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; text-wrap: balance; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 3.2rem 0 .4rem; text-wrap: balance; }
#closer { margin-top: 3.6rem; border-top: 1px solid var(--rule); }
#closer h2 { margin-top: 1.6rem; font-size: 1.45rem; }
#closer + section h2 { margin-top: 2rem; }
h3 { font-size: .95rem; line-height: 1.3; margin: 0 0 .3rem; }
h3.task, .scroll + h3, .charts + h3 { margin-top: 2rem; }
p { max-width: 44rem; margin: .4rem 0 1rem; }
.lead { font-size: 1.1rem; }
.eyebrow, figcaption, .legend, .note, footer { color: var(--soft); font-size: .86rem; line-height: 1.45; }
.eyebrow { margin: 0 0 .6rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 1.6rem 2rem; align-items: start; }
figure { margin: 0; min-width: 0; max-width: 500px; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; color: var(--ink); }
figcaption { margin-top: .4rem; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem .9rem; margin: .3rem 0 0; padding: 0; }
.legend i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .4em; vertical-align: -.05em; }
.tiles { list-style: none; display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 1rem 1.6rem; margin: 1.6rem 0 0; padding: 0; }
.tiles li { max-width: 22rem; border-top: 2px solid var(--faint); padding-top: .5rem; color: var(--soft); font-size: .86rem; line-height: 1.4; }
.tiles b { display: block; color: var(--ink); font-size: 1.7rem; line-height: 1.2; font-weight: 650; letter-spacing: -.02em; margin-bottom: .15rem; }
.grids { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 1rem 1.2rem; align-items: start; margin: .6rem 0 1.4rem; }
.grids h3 { font-size: .86rem; font-weight: 500; }
.scroll { overflow-x: auto; margin: .6rem 0 1rem; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .6rem .32rem 0; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; white-space: normal; line-height: 1.25; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
tbody tr:last-child td { border-bottom: 0; }
details { margin: 1rem 0; }
summary { cursor: pointer; color: var(--soft); font-size: .9rem; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .2rem 1.2rem; font-size: .86rem; margin: .6rem 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
code { font: .92em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
@media (max-width: 480px) { h1 { font-size: 1.45rem; } h2 { font-size: 1.12rem; margin-top: 2.4rem; } main { padding-top: 1.5rem; } dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; } }
@media print { details { display: block; } }
`;
