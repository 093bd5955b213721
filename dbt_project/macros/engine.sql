{#
  What engines do differently, behind adapter.dispatch. Everything else in the project is plain SQL.
#}

{% macro json_text(column, path) -%} {{ adapter.dispatch('json_text')(column, path) }} {%- endmacro %}

{#
  Scalar at a path as text, null when absent. DuckDB reads JSON fractions as doubles; where the
  text holds a number of more than 15 digits, the fraction is looked up in it, digit for digit.
#}
{% macro duckdb__json_text(column, path) -%}
  {%- set text = "json_extract_string(" ~ column ~ ", '" ~ path ~ "')" -%}
  {#- after its name where the path ends in one, so that an equal double elsewhere is not taken -#}
  {%- set name = '"' ~ path.split('."')[-1] ~ '\\s*:\\s*' if path.endswith('"') else '' -%}
  case
    when json_type({{ column }}, '{{ path }}') = 'DOUBLE' and regexp_matches({{ column }}, '[0-9][0-9.]{15}')
      then coalesce(
        list_filter(
          regexp_extract_all({{ column }}, '{{ name }}(-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)', 1),
          lambda number: try_cast(number as double) = try_cast({{ text }} as double)
        )[1],
        {{ text }}
      )
    else {{ text }}
  end
{%- endmacro %}

{% macro default__json_text(column, path) -%} get_json_object({{ column }}, '{{ path }}') {%- endmacro %}

{% macro to_quantity(text) -%} {{ adapter.dispatch('to_quantity')(text) }} {%- endmacro %}

{#
  Numeric text as DECIMAL(38,9), rounded half away from zero; null when it is not a finite number of
  at most 29 integer digits. The narrow cast first: the wide one is 100 times slower.
#}
{% macro duckdb__to_quantity(text) -%}
  case
    when regexp_full_match(trim({{ text }}), '[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?')
      then coalesce(
        cast(try_cast({{ text }} as decimal(18, 9)) as decimal(38, 9)),
        try_cast({{ text }} as decimal(38, 9))
      )
  end
{%- endmacro %}

{% macro default__to_quantity(text) -%}
  case
    when trim({{ text }}) rlike '^[+-]?([0-9]+\\.?[0-9]*|\\.[0-9]+)([eE][+-]?[0-9]{1,3})?$'
      then cast(trim({{ text }}) as decimal(38, 9))
  end
{%- endmacro %}

{% macro newest(value, moment, tie_break) -%} {{ adapter.dispatch('newest')(value, moment, tie_break) }} {%- endmacro %}
{% macro duckdb__newest(value, moment, tie_break) -%}
  arg_max({{ value }}, struct_pack(moment := {{ moment }}, tie := {{ tie_break }}))
{%- endmacro %}
{% macro default__newest(value, moment, tie_break) -%}
  max_by({{ value }}, struct({{ moment }}, {{ tie_break }}))
{%- endmacro %}

{% macro exact_average(total, events) -%} {{ adapter.dispatch('exact_average')(total, events) }} {%- endmacro %}

{#
  total / events to 9 digits, half away from zero. DuckDB divides decimals as doubles, so this
  divides billionths as 128-bit integers and puts the decimal point back.
#}
{% macro duckdb__exact_average(total, events) -%}
  {%- set units = billionths(total) -%}
  {%- set quotient -%}
    ({{ units }} // {{ events }}
      + case
          when 2 * abs({{ units }} % {{ events }}) >= {{ events }} then sign({{ total }})
          else 0
        end)
  {%- endset -%}
  cast(
    cast({{ quotient }} // 1000000000 as decimal(38, 9))
    + cast({{ quotient }} % 1000000000 as decimal(10, 0)) * cast(0.000000001 as decimal(10, 9))
    as decimal(38, 9)
  )
{%- endmacro %}
{% macro default__exact_average(total, events) -%}
  cast({{ total }} / {{ events }} as decimal(38, 9))
{%- endmacro %}

{% macro exact_ratio(numerator, denominator) -%} {{ adapter.dispatch('exact_ratio')(numerator, denominator) }} {%- endmacro %}

{#
  numerator / denominator of two DECIMAL(38,9), to 9 digits, half away from zero; null over zero
  and where the ratio itself has more than 29 integer digits.
  Below 10^19 one division of 128-bit integers does: floor((2 n 10^9 + d) / 2 d) billionths.
  Above, whole part and remainder go apart; from 10^20 on the digits after the point are dropped
  from both, which moves the ratio by less than 10^-19 of itself.
#}
{% macro duckdb__exact_ratio(numerator, denominator) -%}
  {%- set small = '10000000000000000000' -%}
  {%- set small_n = 'cast(cast(abs(' ~ numerator ~ ') as decimal(28, 9)) * 1000000000 as hugeint)' -%}
  {%- set small_d = 'cast(cast(abs(' ~ denominator ~ ') as decimal(28, 9)) * 1000000000 as hugeint)' -%}
  {%- set unit = 'case when abs(' ~ denominator ~ ') >= 100000000000000000000 then 1000000000 else 1 end' -%}
  {%- set n = '(abs(' ~ billionths(numerator) ~ ') // ' ~ unit ~ ')' -%}
  {%- set d = '(abs(' ~ billionths(denominator) ~ ') // ' ~ unit ~ ')' -%}
  {%- set remainder = '((' ~ n ~ ' % ' ~ d ~ ') * 1000000000)' -%}
  case
    when {{ denominator }} <> 0 then
      sign({{ numerator }}) * sign({{ denominator }}) * cast(
        case
          when abs({{ numerator }}) < {{ small }} and abs({{ denominator }}) < {{ small }}
            then cast((2000000000 * {{ small_n }} + {{ small_d }}) // (2 * {{ small_d }}) as decimal(38, 0))
              * cast(0.000000001 as decimal(10, 9))
          else
            try_cast({{ n }} // {{ d }} as decimal(38, 9))
            + cast(
                {{ remainder }} // {{ d }} + case when 2 * ({{ remainder }} % {{ d }}) >= {{ d }} then 1 else 0 end
                as decimal(10, 0)
              ) * cast(0.000000001 as decimal(10, 9))
        end as decimal(38, 9)
      )
  end
{%- endmacro %}
{% macro default__exact_ratio(numerator, denominator) -%}
  cast({{ numerator }} / nullif({{ denominator }}, 0) as decimal(38, 9))
{%- endmacro %}

{# A DECIMAL(38,9) as a whole number of billionths. #}
{% macro billionths(quantity) -%}
  (cast(trunc({{ quantity }}) as hugeint) * 1000000000
    + cast(cast({{ quantity }} - trunc({{ quantity }}) as decimal(10, 9)) * 1000000000 as hugeint))
{%- endmacro %}

{% macro uuid_of(text) -%} {{ adapter.dispatch('uuid_of')(text) }} {%- endmacro %}
{% macro duckdb__uuid_of(text) -%} cast(md5({{ text }}) as uuid) {%- endmacro %}
{% macro default__uuid_of(text) -%}
  regexp_replace(md5({{ text }}), '(.{8})(.{4})(.{4})(.{4})(.{12})', '$1-$2-$3-$4-$5')
{%- endmacro %}

{# What dbt itself dispatches, under names that read well in models. #}
{% macro text_type() -%} {{ dbt.type_string() }} {%- endmacro %}
{% macro now() -%} {{ dbt.current_timestamp() }} {%- endmacro %}
{% macro add_days(column, days) -%} cast({{ dbt.dateadd('day', days, column) }} as date) {%- endmacro %}
{% macro month_of(column) -%} cast({{ dbt.date_trunc('month', column) }} as date) {%- endmacro %}
{% macro next_month(column) -%}
  cast({{ dbt.dateadd('month', 1, dbt.date_trunc('month', column)) }} as date)
{%- endmacro %}
{% macro months_between(earlier, later) -%}
  cast({{ dbt.datediff(earlier, later, 'month') }} as bigint)
{%- endmacro %}

{# Null-safe equality of the columns of two relations. #}
{% macro same(left, right, columns) -%}
  {%- for column in columns -%}
    {{ left }}.{{ column }} is not distinct from {{ right }}.{{ column }}
    {%- if not loop.last %} and {% endif -%}
  {%- endfor -%}
{%- endmacro %}
