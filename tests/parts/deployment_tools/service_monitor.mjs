// Validates a ServiceMonitor: JSON on standard input, a JSON list of faults on standard output.
import { readFileSync } from "node:fs";
import { validate } from "./node_modules/@kubernetes-models/prometheus-operator/_schemas/ComGithubPrometheusOperatorPrometheusOperatorPkgApisMonitoringV1ServiceMonitor.js";

const valid = validate(JSON.parse(readFileSync(0, "utf8")));
console.log(JSON.stringify(valid ? [] : validate.errors));
