{#
  The declared grain holds: no two rows share it, null being a value like any other, and no part
  of it is null that may not be. One test instead of a unique and several not_null ones, because
  each costs a night the same.

  columns: the grain
  nullable: those of `columns` that may be null
#}
{% test unique_grain(model, columns, nullable=[]) %}

select
    {{ columns | join(', ') }},
    count(*) as rows_found
from {{ model }}
group by {{ columns | join(', ') }}
having
    count(*) > 1
    {%- for column in columns if column not in nullable %}
    or {{ column }} is null
    {%- endfor %}

{% endtest %}
