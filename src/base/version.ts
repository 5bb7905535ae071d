// The name and version this build writes into files. A test keeps it equal to package.json.

export const PRODUCER = 'kvtc 0.1.0';
