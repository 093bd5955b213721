{#
  What a forecast is made of; see docs/decisions/0026. The view usage_forecast
  (usage_pipeline/serving/views.py) repeats damping and widening, and a test compares them.
#}

{# How many days a model is fitted to, and how many of them it needs. #}
{% macro fitted_days() -%} {{ return(56) }} {%- endmacro %}
{% macro fewest_days() -%} {{ return(14) }} {%- endmacro %}

{#
  For how many days the forecasts are that are made: 0 is the one to come, and the others were made
  so many days ago, to be tested. Of users only the shorter one is, since that reads fewer days.
#}
{% macro horizons() -%} {{ return([0, 7, 28]) }} {%- endmacro %}
{% macro horizon_of_users() -%} {{ return(7) }} {%- endmacro %}

{# How many days before the last one can have a part in any fit. #}
{% macro days_seen() -%}
  {{ return(fitted_days() + horizons() | max + nights_of_users()) }}
{%- endmacro %}

{% macro weekdays() -%}
  {{ return(['monday', 'tuesday', 'wednesday', 'thursday', 'friday', 'saturday', 'sunday']) }}
{%- endmacro %}

{# How much a day counts in the level: each week six tenths of what the next one does. #}
{% macro weight_of(age) -%}
  case
    {%- for weight in [1000, 600, 360, 216, 130, 78, 47] %}
    when {{ age }} < {{ 7 * loop.index }} then {{ weight }}
    {%- endfor %}
    else 28
  end
{%- endmacro %}

{# How many days of the platform's weekly pattern stand beside a subject's own. #}
{% macro pattern_days() -%} {{ return(6) }} {%- endmacro %}

{#
  A weekday of that pattern in twentieths, as all but the platform have it: the same before and after
  an event more, so that a late one changes no others' models. What a double makes of a half goes up.
#}
{% macro coarse(ratio) -%} floor(20 * {{ ratio }} + 0.500001) / 20 {%- endmacro %}

{# How many days of trend the level is ahead of the mean that it is made of. #}
{% macro trend_days() -%} {{ return(5) }} {%- endmacro %}

{# Half the width of the band, in standard deviations; chosen so that four of five days are within. #}
{% macro band() -%} {{ return('1.15') }} {%- endmacro %}

{# The trend so many days ahead, in days of it: each day keeps 0.93 of what the day before added. #}
{% macro damping(step) -%}
  {%- set sums = namespace(part=1.0, total=0.0) -%}
  case {{ step }}
    {%- for ahead in range(1, horizons() | max + 1) %}
    {%- set sums.part = sums.part * 0.93 -%}
    {%- set sums.total = sums.total + sums.part %}
    when {{ ahead }} then {{ '%.6f' % sums.total }}
    {%- endfor %}
  end
{%- endmacro %}

{# The share of the level that a day may take away at first: of all days together it leaves a little. #}
{% macro steepest_fall() -%} {{ return('0.075') }} {%- endmacro %}

{# The band so many days ahead, in bands of its first width. #}
{% macro widening(step) -%} (1 + 0.007 * {{ step }}) {%- endmacro %}

{# The column of a weekday, of seven with this prefix. #}
{% macro of_weekday(weekday, prefix='') -%}
  case {{ weekday }}
    {%- for name in weekdays() %}
    when {{ loop.index }} then {{ prefix }}{{ name }}
    {%- endfor %}
  end
{%- endmacro %}

{# A quantity that can be calculated with; null when it is unknown or has more than 14 digits. #}
{% macro forecastable(quantity) -%}
  case
    when {{ quantity }} between -100000000000000 and 100000000000000
      then cast({{ quantity }} as decimal(25, 9))
  end
{%- endmacro %}

{# How many nights it takes until all users are fitted, or all organisations. #}
{% macro nights_of_users() -%} {{ return(14) }} {%- endmacro %}
{% macro nights_of_orgs() -%} {{ return(7) }} {%- endmacro %}

{# Which day's turn it is, counted from a Monday. #}
{% macro turn_of(day, nights) -%}
  {{ days_between("cast('2000-01-03' as date)", day) }} % {{ nights }}
{%- endmacro %}

{# Of how many landed days anomalies are kept. #}
{% macro judged_days() -%} {{ return(91) }} {%- endmacro %}

{# On whose turn the models of a user or an organisation are fitted, by the last digits of the id. #}
{% macro turn_of_id(id, nights) -%}
  {%- set text = 'cast(' ~ id ~ ' as ' ~ text_type() ~ ')' -%}
  (
    16 * position(substr({{ text }}, 35, 1) in '0123456789abcdef')
    + position(substr({{ text }}, 36, 1) in '0123456789abcdef')
  ) % {{ nights }}
{%- endmacro %}

{# Whether a user is one of the few, one in 32, whose forecasts are tested. #}
{% macro is_tested(user_id) -%}
  substr(cast({{ user_id }} as {{ text_type() }}), 33, 2) in ('00', '20', '40', '60', '80', 'a0', 'c0', 'e0')
{%- endmacro %}
