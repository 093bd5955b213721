{#
  The meters of meters.yml as SQL: which events a meter sees, what a value is, and how daily
  partials merge into a total at any grain. See docs/decisions/0002.
#}

{% macro meters(aggregation=none) -%}
  {{ return(var('meters') | selectattr('aggregation', 'equalto', aggregation) | list if aggregation else var('meters')) }}
{%- endmacro %}

{# Meters that usage_event_partials_daily answers: no second look at the events. #}
{% macro plain_meters() -%}
  {%- set found = [] -%}
  {%- for meter in var('meters') -%}
    {%- if not meter.value and not meter.filter and meter.aggregation not in ('unique_count', 'latest') -%}
      {%- do found.append(meter) -%}
    {%- endif -%}
  {%- endfor -%}
  {{ return(found) }}
{%- endmacro %}

{% macro own_pass_meters() -%}
  {%- set plain = plain_meters() -%}
  {{ return(var('meters') | reject('in', plain) | list) }}
{%- endmacro %}

{% macro quoted(texts) -%}
  {%- for text in texts -%} '{{ text | replace("'", "''") }}' {%- if not loop.last %}, {% endif -%} {%- endfor -%}
{%- endmacro %}

{# Whether the meter of the column aggregates in this way. #}
{% macro metric_in(aggregation, column='metric_type') -%}
  {%- set keys = meters(aggregation) | map(attribute='key') | list -%}
  {%- if keys -%} {{ column }} in ({{ quoted(keys) }}) {%- else -%} false {%- endif -%}
{%- endmacro %}

{# Whether totals of the metric add up across days, users and organisations. #}
{% macro is_additive(column='metric_type') -%}
  ({{ metric_in('sum', column) }} or {{ metric_in('count', column) }})
{%- endmacro %}

{# Whether totals over a longer time give those over a shorter one by subtraction. #}
{% macro is_subtractable(column='metric_type') -%}
  ({{ is_additive(column) }} or {{ metric_in('avg', column) }})
{%- endmacro %}

{# The meters of which that is not true. #}
{% macro other_meters() -%}
  {{ return(meters() | rejectattr('aggregation', 'in', ['sum', 'count', 'avg']) | list) }}
{%- endmacro %}

{# The valid events that a meter sees, with value_text and value; value is null where it is invalid. #}
{% macro meter_events(meter, events) -%}
  select
    usage_date,
    user_id,
    org_id,
    event_id,
    event_type,
    event_data,
    quantity,
    quantity_raw,
    created_at,
    {% if meter.value -%}
      {{ json_text('event_data', meter.value) }} as value_text,
      {{ to_quantity(json_text('event_data', meter.value)) }} as value_number
    {%- else -%}
      cast(quantity as {{ text_type() }}) as value_text,
      quantity as value_number
    {%- endif %}
    {%- for dimension in meter.dimensions %},
      {{ json_text('event_data', dimension.path) }} as dimension_{{ dimension.name }}
    {%- endfor %}
  from {{ events }}
  where
    {{ in_window('usage_date') }}
    and is_valid
    and event_type = '{{ meter.event_type }}'
    {%- for condition in meter.filter %}
      and {{ json_text('event_data', condition.path) }} in ({{ quoted(condition['values']) }})
    {%- endfor %}
{%- endmacro %}

{# What makes an event of `meter_events` countable for its meter. #}
{% macro meter_value_is_valid(meter) -%}
  {%- if meter.aggregation == 'count' -%} true
  {%- elif meter.aggregation == 'unique_count' -%} value_text is not null
  {%- else -%} value_number is not null
  {%- endif -%}
{%- endmacro %}

{#
  What a meter's aggregation makes of merged partials; the one place where an aggregation is defined.

  metric_type, event_count, total: columns or expressions, the last one being the sum in one number
  least, greatest, latest, distinct_count: the same; not needed where no metric asks for them
#}
{% macro meter_total(
    metric_type, event_count, total, least=none, greatest=none, latest=none, distinct_count=none
) -%}
  cast(
    case
      when {{ metric_in('count', metric_type) }} then {{ event_count }}
      {% if meters('avg') %}
        when {{ metric_in('avg', metric_type) }} then {{ exact_average(total, event_count) }}
      {% endif %}
      {%- for aggregation, part in [
          ('min', least), ('max', greatest), ('latest', latest), ('unique_count', distinct_count)
      ] if part and meters(aggregation) %}
        when {{ metric_in(aggregation, metric_type) }} then {{ part }}
      {% endfor %}
      else {{ total }}
    end as decimal(38, 9)
  )
{%- endmacro %}

{# The total of one row of partials, which holds all parts itself. #}
{% macro total_of_partials() -%}
  {{ meter_total(
      'metric_type',
      'event_count',
      total_of_parts('sum_quantity', 'sum_great'),
      'min_quantity',
      'max_quantity',
      'latest_quantity',
      'distinct_count'
  ) }}
{%- endmacro %}

{#
  Totals of partials at a coarser grain.

  partials, distinct_values: relations or CTEs with the columns of usage_partials_daily and
    usage_values_daily, already limited to what is to be merged
  grain: columns of both, beside metric_type
  Gives: grain, metric_type, total_quantity, event_count, first_event_at, last_event_at,
    cells (partials merged), active_users, active_orgs
#}
{% macro merged_usage(partials, distinct_values, grain) -%}
  {%- set keys = grain + ['metric_type'] -%}
  select
    {% for key in keys %} merged.{{ key }}, {% endfor %}
    {{ meter_total(
        'merged.metric_type',
        'merged.event_count',
        'merged.sum_quantity',
        'merged.min_quantity',
        'merged.max_quantity',
        'newest.latest_quantity',
        'counted.distinct_count'
    ) }} as total_quantity,
    cast(merged.event_count as bigint) as event_count,
    merged.first_event_at,
    merged.last_event_at,
    merged.cells,
    merged.active_users,
    merged.active_orgs
  from (
    select
      {{ keys | join(', ') }},
      sum(event_count) as event_count,
      {{ total_of_parts('sum(sum_quantity)', 'sum(sum_great)') }} as sum_quantity,
      min(min_quantity) as min_quantity,
      max(max_quantity) as max_quantity,
      min(first_event_at) as first_event_at,
      max(last_event_at) as last_event_at,
      count(*) as cells,
      count(distinct user_id) as active_users,
      count(distinct org_id) as active_orgs
    from {{ partials }}
    group by {{ keys | join(', ') }}
  ) as merged
  {% if meters('latest') %}
    left join ({{ newest_partials(partials, keys) }}) as newest
      on {{ same('merged', 'newest', keys) }}
  {% endif %}
  {% if meters('unique_count') %}
    left join (
      select
        {{ keys | join(', ') }},
        count(distinct value_text) as distinct_count
      from {{ distinct_values }}
      group by {{ keys | join(', ') }}
    ) as counted
      on {{ same('merged', 'counted', keys) }}
  {% endif %}
{%- endmacro %}

{#
  Partials merged to partials of a coarser grain, to be merged again.

  partials: relation or CTE with the columns of usage_partials_daily, already limited
  grain: columns of it, metric_type among them
  Gives: grain, cells (partials merged) and the other columns of usage_partials_daily, but for
    distinct_count, which does not merge
#}
{% macro merged_partials(partials, grain) -%}
  select
    {% for key in grain %} merged.{{ key }}, {% endfor %}
    cast(merged.event_count as bigint) as event_count,
    cast(merged.sum_quantity as decimal(38, 9)) as sum_quantity,
    cast(merged.sum_great as decimal(38, 0)) as sum_great,
    merged.min_quantity,
    merged.max_quantity,
    {% if meters('latest') %}
      newest.latest_quantity,
      newest.latest_event_id,
    {% else %}
      cast(null as decimal(38, 9)) as latest_quantity,
      cast(null as {{ text_type() }}) as latest_event_id,
    {% endif %}
    merged.cells,
    merged.first_event_at,
    merged.last_event_at
  from (
    select
      {{ grain | join(', ') }},
      sum(event_count) as event_count,
      sum(sum_quantity) as sum_quantity,
      sum(sum_great) as sum_great,
      min(min_quantity) as min_quantity,
      max(max_quantity) as max_quantity,
      count(*) as cells,
      min(first_event_at) as first_event_at,
      max(last_event_at) as last_event_at
    from {{ partials }}
    group by {{ grain | join(', ') }}
  ) as merged
  {% if meters('latest') %}
    left join ({{ newest_partials(partials, grain) }}) as newest
      on {{ same('merged', 'newest', grain) }}
  {% endif %}
{%- endmacro %}

{# Of each group of partials the one with the latest event, for the meters that want it. #}
{% macro newest_partials(partials, grain) -%}
  select
    {{ grain | join(', ') }},
    latest_quantity,
    latest_event_id
  from (
    select
      {{ grain | join(', ') }},
      latest_quantity,
      latest_event_id,
      row_number() over (
        partition by {{ grain | join(', ') }} order by last_event_at desc, latest_event_id desc
      ) as recency
    from {{ partials }}
    where {{ metric_in('latest') }}
  ) as ranked
  where recency = 1
{%- endmacro %}

{# The number a meter aggregates; counting meters have none, so text that is no number cannot fail. #}
{% macro meter_number(meter) -%}
  {%- if meter.aggregation in ('count', 'unique_count') -%} cast(0 as decimal(38, 9))
  {%- else -%} value_number
  {%- endif -%}
{%- endmacro %}

{# No rows, in the columns of usage_meter_partials_daily. #}
{% macro empty_partials() -%}
  (
    select
      cast(null as date) as usage_date,
      cast(null as {{ uuid_type() }}) as user_id,
      cast(null as {{ uuid_type() }}) as org_id,
      cast(null as {{ text_type() }}) as metric_type,
      cast(null as bigint) as event_count,
      cast(null as decimal(38, 9)) as sum_quantity,
      cast(null as decimal(38, 0)) as sum_great,
      cast(null as decimal(38, 9)) as min_quantity,
      cast(null as decimal(38, 9)) as max_quantity,
      cast(null as decimal(38, 9)) as latest_quantity,
      cast(null as {{ text_type() }}) as latest_event_id,
      cast(null as bigint) as distinct_count,
      cast(null as {{ instant_type() }}) as first_event_at,
      cast(null as {{ instant_type() }}) as last_event_at
  ) as nothing
  where false
{%- endmacro %}
