select plan, metric_type, limit_quantity from plan_limits
