{#
  What engines do differently, behind adapter.dispatch. Everything else in the project is plain SQL.
  A default__ is what any engine spells and counts alike; where there is none, another engine has to
  bring its own before anything compiles.
#}

{% macro json_text(column, path) -%} {{ adapter.dispatch('json_text')(column, path) }} {%- endmacro %}

{#
  What is at a path as text, null when absent; a number as spelled_number spells it.

  DuckDB reads the numbers of a document as doubles. That is exact up to 15 digits; where some
  number in the document has more, or a huge exponent, they are read as they are written. So are
  those inside an object or a list.
#}
{% macro duckdb__json_text(column, path) -%}
  {%- set text = "json_extract_string(" ~ column ~ ", '" ~ path ~ "')" -%}
  {%- set written = duckdb__json_as_written(column, path) -%}
  {%- set number -%}
    case
      when regexp_matches({{ column }}, '[0-9][0-9.]{15}|[0-9][eE][+-]?[0-9]{3}') then {{ written }}
      else {{ text }}
    end
  {%- endset -%}
  {%- set type = "json_type(" ~ column ~ ", '" ~ path ~ "')" -%}
  case
    when {{ type }} in ('DOUBLE', 'OBJECT', 'ARRAY')
      then case when {{ type }} = 'DOUBLE' then {{ duckdb__spelled_number(number) }} else {{ written }} end
    else {{ text }}
  end
{%- endmacro %}

{#
  What is at a path as JSON, with its numbers as the document writes them. Each match is all up to
  a number outside of strings, and the number, which becomes text with a mark that jsonb cannot
  hold; the zero at the end is there so that no string is searched for numbers.
#}
{% macro duckdb__json_as_written(column, path) -%}
  regexp_replace(
    cast(json_extract(
      regexp_replace(
        '[' || {{ column }} || ',0]',
        '((?:"(?:[^"\\]|\\.)*"|[^"0-9-])*)(-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)',
        '\1"\\u0000\2"',
        'gs'
      ),
      '$[0]{{ path[1:] }}'
    ) as varchar),
    '"\\u0000([^"]*)"',
    '\1',
    'g'
  )
{%- endmacro %}

{#
  The one spelling of a JSON number: plain digits, no exponent, no zeros that say nothing, no -0.
  So 1.50, 1.5 and 15e-1 are 1.5. The same as `spelled_number` in meters.py.
#}
{% macro duckdb__spelled_number(number) -%}
  list_transform(
    [{{ number }}],
    lambda written: list_transform(
      [{{ duckdb__plain_number('written') }}],
      lambda plain: case
        when regexp_full_match(plain, '-?[0.]+') then '0'
        when contains(plain, '.')
          then rtrim(rtrim(regexp_replace(plain, '^(-?)0+([0-9])', '\1\2'), '0'), '.')
        else plain
      end
    )[1]
  )[1]
{%- endmacro %}

{# A number with its exponent of at most four digits written out, and any other as it is. #}
{% macro duckdb__plain_number(number) -%}
  case
    when regexp_matches({{ number }}, '[eE][+-]?0*[0-9]{1,4}$')
      then list_transform(
        [struct_pack(
          minus := regexp_extract({{ number }}, '^-'),
          whole := regexp_extract({{ number }}, '^[+-]?([0-9]*)', 1),
          fraction := regexp_extract({{ number }}, '\.([0-9]*)', 1),
          shift := cast(regexp_extract({{ number }}, '[eE](.*)', 1) as integer)
        )],
        lambda n: list_transform(
          [repeat('0', -n.shift) || n.whole || n.fraction || repeat('0', n.shift)],
          lambda digits:
            n.minus || digits[:length(n.whole) + greatest(n.shift, 0)] || '.'
            || digits[length(n.whole) + greatest(n.shift, 0) + 1:]
        )[1]
      )[1]
    else {{ number }}
  end
{%- endmacro %}

{% macro to_quantity(text) -%} {{ adapter.dispatch('to_quantity')(text) }} {%- endmacro %}

{#
  Numeric text as DECIMAL(38,9), rounded half away from zero; null when it is not a finite number of
  at most 29 integer digits. A number is what Postgres 13 reads as one: space around, sign, digits
  with a point before, in or after them, exponent; of an exponent, at most four digits.
  The narrow cast first: the wide one is 100 times slower.
#}
{% macro duckdb__to_quantity(text) -%}
  {%- set number = '[+-]?(?:[0-9]+\\.?[0-9]*|\\.[0-9]+)' -%}
  {%- set any_number = '[\\s\\v]*(' ~ number ~ '(?:[eE][+-]?0*[0-9]{1,4})?)[\\s\\v]*' -%}
  {%- set trimmed = 'regexp_extract(' ~ text ~ ", '" ~ any_number ~ "', 1)" -%}
  case
    when regexp_full_match({{ text }}, '{{ number }}')
      then coalesce(
        cast(try_cast({{ text }} as decimal(18, 9)) as decimal(38, 9)),
        try_cast({{ text }} as decimal(38, 9))
      )
    when regexp_full_match({{ text }}, '{{ any_number }}')
      then try_cast({{ duckdb__plain_number(trimmed) }} as decimal(38, 9))
  end
{%- endmacro %}

{% macro spelled_quantity(quantity) -%} {{ adapter.dispatch('spelled_quantity')(quantity) }} {%- endmacro %}
{# A DECIMAL(38,9) as text, without the zeros at its end that say nothing. #}
{% macro duckdb__spelled_quantity(quantity) -%}
  rtrim(rtrim(cast({{ quantity }} as varchar), '0'), '.')
{%- endmacro %}

{% macro held(value) -%} {{ adapter.dispatch('held')(value) }} {%- endmacro %}
{# A decimal, or the text of one, as DECIMAL(38,9); null when that cannot hold it. #}
{% macro duckdb__held(value) -%} try_cast({{ value }} as decimal(38, 9)) {%- endmacro %}

{% macro newest(value, moment, tie_break) -%} {{ adapter.dispatch('newest')(value, moment, tie_break) }} {%- endmacro %}
{% macro duckdb__newest(value, moment, tie_break) -%}
  arg_max({{ value }}, struct_pack(moment := {{ moment }}, tie := {{ tie_break }}))
{%- endmacro %}

{% macro exact_average(total, events) -%} {{ adapter.dispatch('exact_average')(total, events) }} {%- endmacro %}

{#
  total / events to 9 digits, half away from zero. DuckDB divides decimals as doubles, so this
  divides billionths as 128-bit integers and puts the decimal point back.
#}
{% macro duckdb__exact_average(total, events) -%}
  {%- set units = duckdb__billionths(total) -%}
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
  {%- set n = '(abs(' ~ duckdb__billionths(numerator) ~ ') // ' ~ unit ~ ')' -%}
  {%- set d = '(abs(' ~ duckdb__billionths(denominator) ~ ') // ' ~ unit ~ ')' -%}
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

{% macro reaches_share(used, limit, share, ratio) -%} {{ adapter.dispatch('reaches_share')(used, limit, share, ratio) }} {%- endmacro %}
{# Whether used is at least that share of a limit, exactly; by their rounded ratio where the share cannot be held. #}
{% macro duckdb__reaches_share(used, limit, share, ratio) -%}
  coalesce(try({{ used }} >= {{ limit }} * {{ share }}), {{ ratio }} >= {{ share }})
{%- endmacro %}

{% macro estimate(value) -%} {{ adapter.dispatch('estimate')(value) }} {%- endmacro %}
{#
  A number to estimate with, which has 15 digits and is quick to divide by; never a total. What is
  added up over rows is a decimal still, since the order of rows is nobody's.
#}
{% macro duckdb__estimate(value) -%} cast({{ value }} as double) {%- endmacro %}

{% macro difference(left, right) -%} {{ adapter.dispatch('difference')(left, right) }} {%- endmacro %}
{# left - right of two DECIMAL(38,9); null when that cannot be held. #}
{% macro duckdb__difference(left, right) -%} try({{ left }} - {{ right }}) {%- endmacro %}

{# A DECIMAL(38,9) as a whole number of billionths. #}
{% macro duckdb__billionths(quantity) -%}
  (cast(trunc({{ quantity }}) as hugeint) * 1000000000
    + cast(cast({{ quantity }} - trunc({{ quantity }}) as decimal(10, 9)) * 1000000000 as hugeint))
{%- endmacro %}

{# Types: ids are text where the engine has no type for them; an instant has no zone. #}
{% macro uuid_type() -%} {{ adapter.dispatch('uuid_type')() }} {%- endmacro %}
{% macro duckdb__uuid_type() -%} uuid {%- endmacro %}
{% macro default__uuid_type() -%} {{ text_type() }} {%- endmacro %}

{% macro instant_type() -%} {{ adapter.dispatch('instant_type')() }} {%- endmacro %}
{% macro duckdb__instant_type() -%} timestamptz {%- endmacro %}

{% macro weekday_of(day) -%} {{ adapter.dispatch('weekday_of')(day) }} {%- endmacro %}
{# 1 is Monday, 7 is Sunday. #}
{% macro duckdb__weekday_of(day) -%} cast(extract(isodow from {{ day }}) as integer) {%- endmacro %}

{# What dbt itself dispatches, under names that read well in models. #}
{% macro text_type() -%} {{ dbt.type_string() }} {%- endmacro %}
{% macro add_days(column, days) -%} cast({{ dbt.dateadd('day', days, column) }} as date) {%- endmacro %}
{% macro month_of(column) -%} cast({{ dbt.date_trunc('month', column) }} as date) {%- endmacro %}
{% macro next_month(column) -%}
  cast({{ dbt.dateadd('month', 1, dbt.date_trunc('month', column)) }} as date)
{%- endmacro %}
{% macro days_between(earlier, later) -%}
  cast({{ dbt.datediff(earlier, later, 'day') }} as integer)
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
