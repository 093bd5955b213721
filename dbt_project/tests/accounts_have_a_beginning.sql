{{ config(severity='warn', tags=['informative']) }}

{% for source_table, id in [('users', 'user_id'), ('orgs', 'org_id'), ('subscriptions', 'subscription_id')] %}
select
    '{{ source_table }}' as source_table,
    cast({{ id }} as {{ text_type() }}) as account_id
from {{ ref('stg_' ~ source_table) }}
where created_date is null
{% if not loop.last %} union all {% endif %}
{% endfor %}
