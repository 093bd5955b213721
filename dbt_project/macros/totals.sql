{#
  Sums that may need more than the 38 digits of DECIMAL(38,9): two valid quantities are enough. They
  are kept in two parts that cannot overflow, merged part by part, and become one number where it is
  read; NULL when that has more than 29 integer digits. See docs/decisions/0012. How far decimals
  reach, and what cuts one, is the engine's.
#}

{# Below this (10^19) ten billion quantities add up to less than 29 digits. #}
{% macro is_ordinary(value) -%}
  {{ value }} between -10000000000000000000 and 10000000000000000000
{%- endmacro %}

{% macro ordinary_sum(value) -%} {{ adapter.dispatch('ordinary_sum')(value) }} {%- endmacro %}
{# Aggregates: the sum of ordinary values and of the fractions of great ones. #}
{% macro duckdb__ordinary_sum(value) -%}
  cast(
    sum(case when {{ is_ordinary(value) }} then {{ value }} else {{ value }} - trunc({{ value }}) end)
    as decimal(38, 9)
  )
{%- endmacro %}

{% macro great_sum(value) -%} {{ adapter.dispatch('great_sum')(value) }} {%- endmacro %}
{# Aggregates: the sum of the whole parts of great values; NULL where there are none. #}
{% macro duckdb__great_sum(value) -%}
  cast(sum(case when not {{ is_ordinary(value) }} then trunc({{ value }}) end) as decimal(38, 0))
{%- endmacro %}

{% macro total_of_parts(ordinary, great) -%} {{ adapter.dispatch('total_of_parts')(ordinary, great) }} {%- endmacro %}
{# The parts as one number. Whole part and fraction get one sign, so that their sum fits if both do. #}
{% macro duckdb__total_of_parts(ordinary, great) -%}
  {%- set whole = '(' ~ great ~ ' + trunc(' ~ ordinary ~ '))' -%}
  {%- set fraction = '(' ~ ordinary ~ ' - trunc(' ~ ordinary ~ '))' -%}
  case
    when {{ great }} is null then {{ ordinary }}
    when sign({{ whole }}) * sign({{ fraction }}) < 0
      then
        try_cast({{ whole }} - sign({{ whole }}) as decimal(38, 9))
        + cast({{ fraction }} + sign({{ whole }}) as decimal(10, 9))
    else try_cast({{ whole }} as decimal(38, 9)) + cast({{ fraction }} as decimal(10, 9))
  end
{%- endmacro %}

{# Aggregates: the sum of published totals; NULL when it or one of them cannot be held. #}
{% macro total_of(value) -%}
  case when count({{ value }}) = count(*) then {{ total_of_parts(ordinary_sum(value), great_sum(value)) }} end
{%- endmacro %}

{# Whether a whole is another number than its parts; unknown parts tell nothing. #}
{% macro totals_differ(parts, whole) -%}
  (count({{ parts }}) = count(*) and {{ total_of(parts) }} is distinct from {{ total_of(whole) }})
{%- endmacro %}
