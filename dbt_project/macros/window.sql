{#
  The window of days a run (re)builds, from --event-time-start/--event-time-end, and the
  incremental strategy that replaces exactly that window. Without them (unit tests, a bare
  compile) the window is all of time. They are arguments of the invocation: dbt's `flags` in Jinja
  is a fixed selection that does not hold them. `dbt test` has no such arguments: there the
  variables window_start and window_end say what is tested.
#}

{% macro window_start(reach='day') -%}
  {%- set given = var('window_start', none) or invocation_args_dict.get('event_time_start') -%}
  {%- set day = (given | string)[:10] if given else '1900-01-01' -%}
  {%- if reach == 'month' -%} {%- set day = day[:8] ~ '01' -%} {%- endif -%}
  cast('{{ day }}' as date)
{%- endmacro %}

{% macro window_end(reach='day') -%}
  {%- set given = var('window_end', none) or invocation_args_dict.get('event_time_end') -%}
  {%- if given -%}
    {%- set last = modules.datetime.datetime.strptime((given | string)[:10], '%Y-%m-%d') -%}
    {%- if reach == 'month' -%}
      {%- set last = last - modules.datetime.timedelta(days=1) -%}
      {%- set last = last.replace(day=1) + modules.datetime.timedelta(days=31) -%}
      {%- set last = last.replace(day=1) -%}
    {%- elif reach == 'trailing' -%}
      {%- set last = last + modules.datetime.timedelta(days=29) -%}
    {%- endif -%}
    cast('{{ last.strftime('%Y-%m-%d') }}' as date)
  {%- else -%} cast('9000-01-01' as date)
  {%- endif -%}
{%- endmacro %}

{#
  reach: day       the days of the window
         month     the calendar months they are in
         trailing  the days whose trailing 30 days they are in
#}
{% macro in_window(column, reach='day') -%}
  {{ column }} >= {{ window_start(reach) }} and {{ column }} < {{ window_end(reach) }}
{%- endmacro %}

{#
  Replaces whole days (or months): a key that disappeared from the source disappears here, which a
  merge by key would not do. One statement a range, where microbatch runs one a day.
#}
{% macro get_incremental_replace_days_sql(arg_dict) %}
  {%- set columns = arg_dict['dest_columns'] | map(attribute='quoted') | join(', ') -%}
  {%- set reach = config.get('meta', {}).get('reach', 'day') -%}
  delete from {{ arg_dict['target_relation'] }} where {{ in_window(config.get('event_time'), reach) }};
  insert into {{ arg_dict['target_relation'] }} ({{ columns }})
  select {{ columns }} from {{ arg_dict['temp_relation'] }}
{% endmacro %}

{#
  Data tests look at the window only, so that a night's audit does not grow with history: their
  `where: <column> in window` becomes the window in that column's reach.
#}
{% macro get_where_subquery(relation) -%}
  {%- set where = config.get('where') -%}
  {%- if where -%}
    {%- set where = where
          | replace('usage_date in window', in_window('usage_date'))
          | replace('metric_date in window', in_window('metric_date', 'trailing'))
          | replace('month in window', in_window('month', 'month')) -%}
    (select * from {{ relation }} where {{ where }}) as windowed
  {%- else -%} {{ relation }}
  {%- endif -%}
{%- endmacro %}

{# USAGE_START_DATE, the first daily partition. #}
{% macro first_day() -%} cast('{{ var('start_date') }}' as date) {%- endmacro %}
