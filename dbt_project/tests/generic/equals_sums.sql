{#
  A table says what the finer one that it sums up says, in both directions: what only one of them
  has differs from nothing. Counts of all rows are compared and, where there are meters, the
  quantities of those that add up.

  parts: the finer table
  date_column, parts_date: the column that places a row of each in time; days of `parts` are taken
    by months where date_column is `month`
  reach: which days or months around the window, as in in_window
  by: further columns of both; each of their groups is compared
  counts: columns of the table, each with what it is the sum of in `parts`
#}
{% test equals_sums(
    model, parts, date_column, parts_date=none, reach='day', by=[], counts={'event_count': 'event_count'}
) %}
{%- set parts_date = parts_date or date_column -%}
{%- set keys = [date_column] + by -%}
{%- set has_quantities = 'metric_type' in by -%}

select
    {{ keys | join(', ') }}
    {%- for count in counts %},
    sum({{ count }}) as {{ count }},
    sum({{ count }}_of_parts) as {{ count }}_of_parts
    {%- endfor %}
    {%- if has_quantities %},
    {{ total_of('total_quantity') }} as total_quantity,
    {{ total_of('quantity_of_parts') }} as quantity_of_parts
    {%- endif %}
from (
    select
        {{ keys | join(', ') }}
        {%- for count in counts %},
        {{ count }},
        0 as {{ count }}_of_parts
        {%- endfor %}
        {%- if has_quantities %},
        total_quantity,
        cast(0 as decimal(38, 9)) as quantity_of_parts
        {%- endif %}
    from {{ model }}
    where {{ in_window(date_column, reach) }}
    union all
    select
        {{ month_of(parts_date) if date_column == 'month' else parts_date }} as {{ date_column }}
        {%- for column in by %},
        {{ column }}
        {%- endfor %}
        {%- for count, summed in counts.items() %},
        0 as {{ count }},
        {{ summed }} as {{ count }}_of_parts
        {%- endfor %}
        {%- if has_quantities %},
        cast(0 as decimal(38, 9)) as total_quantity,
        total_quantity as quantity_of_parts
        {%- endif %}
    from {{ parts }}
    where {{ in_window(parts_date, reach) }}
) as sides
group by {{ keys | join(', ') }}
having
    {%- for count in counts %}
    {% if not loop.first %}or {% endif %}sum({{ count }}) <> sum({{ count }}_of_parts)
    {%- endfor %}
    {%- if has_quantities %}
    or ({{ is_additive() }} and {{ totals_differ('quantity_of_parts', 'total_quantity') }})
    {%- endif %}

{% endtest %}
