{#
  The window of days a run (re)builds, from --event-time-start/--event-time-end, and the
  materialization that replaces exactly that window. Without them (unit tests, a bare
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
  A table of which each run replaces the window, whole days or months: a key that disappeared from
  the source disappears here, which a merge by key would not do. dbt's own materialization writes
  the rows twice, to a temporary table first, so that columns can be compared; here they cannot
  differ, because other models mean another warehouse.
#}
{% materialization windowed, default %}
  {%- set target = this.incorporate(type='table') -%}
  {{ run_hooks(pre_hooks) }}
  {% call statement('main') -%}
    {%- if load_cached_relation(this) -%}
      {%- set columns = model['columns'] | join(', ') -%}
      {%- set reach = config.get('meta', {}).get('reach', 'day') -%}
      delete from {{ target }} where {{ in_window(config.get('event_time'), reach) }};
      insert into {{ target }} ({{ columns }})
      select {{ columns }} from ({{ compiled_code }}) as rebuilt
    {%- else -%} {{ create_table_as(false, target, compiled_code) }}
    {%- endif -%}
  {%- endcall %}
  {{ run_hooks(post_hooks) }}
  {% do adapter.commit() %}
  {{ return({'relations': [target]}) }}
{% endmaterialization %}

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

{#
  Ages of days, as the number of days up to which they reach: a day is of age 14 when it is one of
  the last 14 but not of the last 7. Each trailing window is made of whole ages.
#}
{% macro ages() -%} {{ return([7, 14, 30, 60, 365, 730]) }} {%- endmacro %}

{% macro age_of(day, as_of_date) -%}
  case
    when {{ day }} > {{ as_of_date }} then null
    {%- for age in ages() %}
    when {{ day }} > {{ add_days(as_of_date, -age) }} then {{ age }}
    {%- endfor %}
  end
{%- endmacro %}

{# A part of usage_trailing_partials summed up over ages; null where no great value is in any. #}
{% macro sum_of_ages(part, ages) -%}
  {%- set columns = [] -%}
  {%- for age in ages -%} {%- do columns.append(part ~ '_' ~ age) -%} {%- endfor -%}
  {%- if part != 'sum_great' or columns | length == 1 -%} {{ columns | join(' + ') }}
  {%- else -%}
    case
      when coalesce({{ columns | join(', ') }}) is not null
        then coalesce({{ columns | join(', 0) + coalesce(') }}, 0)
    end
  {%- endif -%}
{%- endmacro %}

{# What a model built before, whatever depends on it; none where there is no such table or view. #}
{% macro known_relation(name) -%}
  {{ return(load_cached_relation(this.incorporate(path={'identifier': name})) if this else none) }}
{%- endmacro %}
