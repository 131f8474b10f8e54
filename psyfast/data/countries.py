"""Country names for the `nationality` field: ISO 3166-1 alpha-3 codes and the spellings that the study brings together.

The names are the short English ones; where the study writes another (Korea, Macau, Cape Verde), the study's stands, so
that a persona built from a contributor's file has the words of the published data.
"""

from __future__ import annotations

_ALPHA_3 = """
ABW Aruba|AFG Afghanistan|AGO Angola|AIA Anguilla|ALA Åland Islands|ALB Albania|AND Andorra|ARE United Arab Emirates
ARG Argentina|ARM Armenia|ASM American Samoa|ATA Antarctica|ATF French Southern Territories|ATG Antigua and Barbuda
AUS Australia|AUT Austria|AZE Azerbaijan|BDI Burundi|BEL Belgium|BEN Benin|BES Bonaire, Sint Eustatius and Saba
BFA Burkina Faso|BGD Bangladesh|BGR Bulgaria|BHR Bahrain|BHS Bahamas|BIH Bosnia and Herzegovina|BLM Saint Barthélemy
BLR Belarus|BLZ Belize|BMU Bermuda|BOL Bolivia|BRA Brazil|BRB Barbados|BRN Brunei|BTN Bhutan|BVT Bouvet Island
BWA Botswana|CAF Central African Republic|CAN Canada|CCK Cocos (Keeling) Islands|CHE Switzerland|CHL Chile|CHN China
CIV Côte d'Ivoire|CMR Cameroon|COD Democratic Republic of the Congo|COG Congo|COK Cook Islands|COL Colombia
COM Comoros|CPV Cape Verde|CRI Costa Rica|CUB Cuba|CUW Curaçao|CXR Christmas Island|CYM Cayman Islands|CYP Cyprus
CZE Czechia|DEU Germany|DJI Djibouti|DMA Dominica|DNK Denmark|DOM Dominican Republic|DZA Algeria|ECU Ecuador|EGY Egypt
ERI Eritrea|ESH Western Sahara|ESP Spain|EST Estonia|ETH Ethiopia|FIN Finland|FJI Fiji|FLK Falkland Islands|FRA France
FRO Faroe Islands|FSM Micronesia|GAB Gabon|GBR United Kingdom|GEO Georgia|GGY Guernsey|GHA Ghana|GIB Gibraltar
GIN Guinea|GLP Guadeloupe|GMB Gambia|GNB Guinea-Bissau|GNQ Equatorial Guinea|GRC Greece|GRD Grenada|GRL Greenland
GTM Guatemala|GUF French Guiana|GUM Guam|GUY Guyana|HKG Hong Kong|HMD Heard Island and McDonald Islands|HND Honduras
HRV Croatia|HTI Haiti|HUN Hungary|IDN Indonesia|IMN Isle of Man|IND India|IOT British Indian Ocean Territory
IRL Ireland|IRN Iran|IRQ Iraq|ISL Iceland|ISR Israel|ITA Italy|JAM Jamaica|JEY Jersey|JOR Jordan|JPN Japan
KAZ Kazakhstan|KEN Kenya|KGZ Kyrgyzstan|KHM Cambodia|KIR Kiribati|KNA Saint Kitts and Nevis|KOR Korea|KWT Kuwait
LAO Laos|LBN Lebanon|LBR Liberia|LBY Libya|LCA Saint Lucia|LIE Liechtenstein|LKA Sri Lanka|LSO Lesotho|LTU Lithuania
LUX Luxembourg|LVA Latvia|MAC Macau|MAF Saint Martin|MAR Morocco|MCO Monaco|MDA Moldova|MDG Madagascar|MDV Maldives
MEX Mexico|MHL Marshall Islands|MKD North Macedonia|MLI Mali|MLT Malta|MMR Myanmar|MNE Montenegro|MNG Mongolia
MNP Northern Mariana Islands|MOZ Mozambique|MRT Mauritania|MSR Montserrat|MTQ Martinique|MUS Mauritius|MWI Malawi
MYS Malaysia|MYT Mayotte|NAM Namibia|NCL New Caledonia|NER Niger|NFK Norfolk Island|NGA Nigeria|NIC Nicaragua|NIU Niue
NLD Netherlands|NOR Norway|NPL Nepal|NRU Nauru|NZL New Zealand|OMN Oman|PAK Pakistan|PAN Panama|PCN Pitcairn|PER Peru
PHL Philippines|PLW Palau|PNG Papua New Guinea|POL Poland|PRI Puerto Rico|PRK North Korea|PRT Portugal|PRY Paraguay
PSE Palestine|PYF French Polynesia|QAT Qatar|REU Réunion|ROU Romania|RUS Russia|RWA Rwanda|SAU Saudi Arabia|SDN Sudan
SEN Senegal|SGP Singapore|SGS South Georgia and the South Sandwich Islands|SHN Saint Helena|SJM Svalbard and Jan Mayen
SLB Solomon Islands|SLE Sierra Leone|SLV El Salvador|SMR San Marino|SOM Somalia|SPM Saint Pierre and Miquelon
SRB Serbia|SSD South Sudan|STP São Tomé and Príncipe|SUR Suriname|SVK Slovakia|SVN Slovenia|SWE Sweden|SWZ Eswatini
SXM Sint Maarten|SYC Seychelles|SYR Syria|TCA Turks and Caicos Islands|TCD Chad|TGO Togo|THA Thailand|TJK Tajikistan
TKL Tokelau|TKM Turkmenistan|TLS Timor-Leste|TON Tonga|TTO Trinidad and Tobago|TUN Tunisia|TUR Turkey|TUV Tuvalu
TWN Taiwan|TZA Tanzania|UGA Uganda|UKR Ukraine|UMI United States Minor Outlying Islands|URY Uruguay|USA United States
UZB Uzbekistan|VAT Vatican City|VCT Saint Vincent|VEN Venezuela|VGB British Virgin Islands|VIR U.S. Virgin Islands
VNM Vietnam|VUT Vanuatu|WLF Wallis and Futuna|WSM Samoa|YEM Yemen|ZAF South Africa|ZMB Zambia|ZWE Zimbabwe
"""

ALPHA_3_NAMES: dict[str, str] = {
    entry[:3]: entry[4:] for line in _ALPHA_3.strip().splitlines() for entry in line.split("|")
}

OTHER_SPELLINGS: dict[str, str] = {
    "Basel": "Switzerland",  # two labs that recruited in one city each wrote the city
    "Berlin": "Germany",
    "England": "United Kingdom",
    "Scotland": "United Kingdom",
    "Wales": "United Kingdom",
    "Northern Ireland": "United Kingdom",
    "English/Welsh/Scottish/Northern Irish/British": "United Kingdom",
    "Irish": "Ireland",
    "Bangladeshi": "Bangladesh",
    "Pakistani": "Pakistan",
    "Indian": "India",
    "Chinese": "China",
    "South Korea": "Korea",
    "Czech Republic": "Czechia",
    "Russian Federation": "Russia",
    "Venezuela, Bolivarian Republic of": "Venezuela",
    "Saint Vincent and the Grenadines": "Saint Vincent",
}

NO_COUNTRY: frozenset[str] = frozenset(
    {
        "Unknown",
        "(please specify)",
        "Europe",
        "Africa, Asia, Pacific",
        "North or South America",
        # answers to a question about ethnicity that was stored as nationality
        "White",
        "Arab",
        "African",
        "Caribbean",
        "Ethnic Group",
        "Gypsy or Irish Traveller",
        "Asian/Asian British",
        "Black / African / Caribbean / Black British",
        "Mixed/ Multiple Ethnic Groups",
        "White and Asian",
        "White and Black African",
        "White and Black Caribbean",
        "Any other white background",
        "Any other asian background",
        "Any other mixed/multiple ethnic background",
        "Any other Black/African/Caribbean background",
    }
)


def country_name(value: str) -> str | None:
    """The country that an entry names; the entry itself where no rule knows it, None where it names none.

    >>> country_name("DEU"), country_name("Scotland"), country_name("Europe"), country_name("Utopia")
    ('Germany', 'United Kingdom', None, 'Utopia')
    """
    plain = value.replace("Other ", "").replace('"', "").replace(" (please specify)", "").replace("_", " ").strip()
    if not plain or plain in NO_COUNTRY:
        return None
    return ALPHA_3_NAMES.get(plain) or OTHER_SPELLINGS.get(plain, plain)
