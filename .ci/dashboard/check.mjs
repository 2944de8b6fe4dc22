// Checks docs/dashboard.json against the types that Grafana publishes: no field is missing, misspelled or of another
// type, in the dashboard, in each panel's options and in each panel's own field configuration.
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';
import { defaultDashboard } from '@grafana/schema';

const file = fileURLToPath(new URL('../../docs/dashboard.json', import.meta.url));
const dashboard = JSON.parse(readFileSync(file, 'utf8'));
let source = `
import type { Dashboard, DataQuery, Panel, RowPanel, VariableModel } from '@grafana/schema';
import type * as stat from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type * as timeseries from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

// JSON has the values of enums where TypeScript wants their names.
type JSON<T> = T extends string ? \`\${T}\` : T extends object ? { [K in keyof T]: JSON<T[K]> } : T;
type Query = DataQuery & { expr: string; legendFormat: string };
`;
const check = (type, value) => {
  source += `(${JSON.stringify(value)}) satisfies JSON<${type}>;\n`;
};

const { panels, templating, ...rest } = dashboard;
check('Dashboard', rest);
check('NonNullable<Dashboard["templating"]>', templating);
for (const panel of panels) {
  if (panel.type === 'row') {
    check('RowPanel', panel);
    continue;
  }
  check('Panel', panel);
  check(`${panel.type}.Options`, panel.options);
  check('Query[]', panel.targets);
  if (panel.type === 'timeseries') {
    check('timeseries.FieldConfig', panel.fieldConfig.defaults.custom);
  } else if (panel.fieldConfig.defaults.custom) {
    source += `panel ${panel.id} has a field configuration of its own\n`;
  }
}

const name = fileURLToPath(new URL('dashboard.ts', import.meta.url)); // in memory only
const options = { strict: true, noEmit: true, skipLibCheck: true, target: ts.ScriptTarget.ES2022,
  module: ts.ModuleKind.ESNext, moduleResolution: ts.ModuleResolutionKind.Bundler, types: [] };
const host = ts.createCompilerHost(options);
const getSourceFile = host.getSourceFile.bind(host);
host.getSourceFile = (f, ...more) => (f === name ? ts.createSourceFile(f, source, options.target) : getSourceFile(f, ...more));

const wrong = ts.getPreEmitDiagnostics(ts.createProgram([name], options, host)).map((d) => {
  const near = d.start === undefined ? '' : source.slice(d.start, d.start + 60);
  return `${ts.flattenDiagnosticMessageText(d.messageText, '\n')}\n  at ${near}`;
});
if (dashboard.schemaVersion !== defaultDashboard.schemaVersion) {
  wrong.push(`schemaVersion is ${dashboard.schemaVersion}, and Grafana's ${defaultDashboard.schemaVersion}`);
}
if (wrong.length > 0) {
  console.error(`docs/dashboard.json:\n${wrong.join('\n')}`);
  process.exit(1);
}
console.log(`docs/dashboard.json: ${panels.length} panels, schemaVersion ${dashboard.schemaVersion}`);
