"""The SQL that MetricFlow makes of queries, in a process of its own: `[[metrics, group by], …]` as
JSON comes in, a statement for each goes out. Run in a dbt project that is parsed."""

from __future__ import annotations

import json
import sys

from dbt_metricflow.cli.cli_configuration import CLIConfiguration
from metricflow.engine.metricflow_engine import MetricFlowQueryRequest

if __name__ == "__main__":
    configuration = CLIConfiguration()
    configuration.setup(configure_file_logging=False)
    statements = []
    for metrics, group_by in json.load(sys.stdin):
        request = MetricFlowQueryRequest.create(metric_names=metrics, group_by_names=group_by)
        statements.append(configuration.mf.explain(request).sql_statement.without_descriptions.sql)
    print("---")
    print(json.dumps(statements))
